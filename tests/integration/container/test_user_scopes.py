"""Cgroups by the manager of a user's session: for who is not root, from within its cgroups and from outside them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mamushka.container.cgroups.bus import reachable
from mamushka.container.cgroups.cgroup import SYSTEMD
from mamushka.container.cgroups.layout import layout
from mamushka.spec.runtime import IDMapping, Memory, Namespace, Resources
from mamushka.values import replace
from tests.integration.container.conftest import Ground

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.skipif(not reachable(user=False), reason="systemd is not the first process"),
]
UID = 1  # daemon's, everywhere; it owns nothing
MB = 1 << 20


@pytest.fixture
def session(unique: str) -> Iterator[str]:
    """The unit of a running ``systemd --user``; its directory is /run/UNIT."""
    directory = f"/run/{unique}"
    os.mkdir(directory, 0o700)
    os.chown(directory, UID, UID)
    unit = f"{unique}.service"
    words = ["systemd-run", "--unit", unit, "--slice=user.slice", f"--uid={UID}", "--property=Delegate=yes"]
    words += ["--property=Type=notify", f"--setenv=XDG_RUNTIME_DIR={directory}", "--setenv=HOME=/"]
    try:
        subprocess.run([*words, "/lib/systemd/systemd", "--user"], check=True, capture_output=True, timeout=60)
        yield unit
    finally:
        subprocess.run(["systemctl", "stop", unit], check=False, capture_output=True, timeout=60)
        subprocess.run(["rm", "-rf", directory], check=True)


def as_user(session: str, work: Callable[[], None], *, cgroup: str = "") -> str:
    """What a forked child of the user's says; empty when it is content."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if cgroup:
                with open(f"{layout().unified}{cgroup}/cgroup.procs", "w") as file:
                    file.write("0")
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            os.environ["XDG_RUNTIME_DIR"] = f"/run/{session.removesuffix('.service')}"
            work()
        except BaseException as error:
            import traceback

            os.write(writing, "".join(traceback.format_exception(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("inside", [True, False])
def test_a_users_container_is_in_a_scope_of_the_users(
    session: str, rootfs: str, tmp_path: Any, *, inside: bool
) -> None:
    """With the limits, for run and for exec; nothing is left. A session is not within the cgroups of its manager."""
    for path in (tmp_path, *tmp_path.parents[:2], rootfs):
        os.chmod(path, 0o755)
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, UID, UID)
    own = f"/user.slice/{session}"
    where = f"{own}/user.slice/mamushka-box.scope"
    users = {
        "uid_mappings": (IDMapping(0, UID, 1),),
        "gid_mappings": (IDMapping(0, UID, 1),),
        "resources": Resources(memory=Memory(limit=30 * MB)),
        "seccomp": None,
    }

    def work() -> None:
        ground = Ground(str(state), rootfs, "box", SYSTEMD)
        config = ground.config("sleep 60", linux=users)
        assert config.linux
        spaces = tuple(space for space in config.linux.namespaces if space.type != "network")
        config = replace(config, linux=replace(config.linux, namespaces=(*spaces, Namespace("user"))))
        mounts = tuple(mount for mount in config.mounts if mount.type not in ("sysfs", "cgroup", "cgroup2", "mqueue"))
        mounts = tuple(replace(m, options=tuple(o for o in m.options if not o.startswith("gid="))) for m in mounts)
        started = ground.start(replace(config, mounts=mounts))
        try:
            with open(f"/proc/{started.pid}/cgroup") as file:
                assert file.read() == f"0::{where}\n"
            with open(f"{layout().unified}{where}/memory.max") as file:
                assert file.read() == f"{30 * MB}\n"
            assert ground.exec("cat /proc/self/cgroup") == (0, "0::/\n")
            assert ground.runtime.stats("box").pids == 1
        finally:
            ground.clean()

    # systemd has the manager itself in a cgroup of its own, below which whatever it starts is.
    said = as_user(session, work, cgroup=f"{own}/init.scope" if inside else "")
    assert not said, said
    deadline = time.monotonic() + 10
    while os.path.exists(f"{layout().unified}{where}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"{layout().unified}{where}")
    assert os.listdir(state) == []
