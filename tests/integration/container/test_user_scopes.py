"""Cgroups by the manager of a user's session: for who is not root, from within its cgroups and from outside them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from mamushka.container import channel
from mamushka.container.cgroups.bus import reachable
from mamushka.container.cgroups.cgroup import SYSTEMD, Cgroup, choose, open_cgroup
from mamushka.container.cgroups.layout import layout
from mamushka.container.spawn import Birth
from mamushka.linux.script import CHANNEL, ROOM, Script
from mamushka.spec.runtime import DeviceRule, Memory, Resources
from mamushka.values import EMPTY

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
def test_a_users_scope_is_made_by_the_users_manager(session: str, *, inside: bool) -> None:
    """With its limits, and a process born into it. A session, as one logs into, is not within its manager's cgroups."""
    own = f"/user.slice/{session}"
    where = f"{own}/user.slice/mamushka-box.scope"

    def work() -> None:
        cgroup = choose(SYSTEMD, "", "box", EMPTY)
        assert cgroup.place == f"user:{where}"
        cgroup.create(Resources(memory=Memory(limit=30 * MB), devices=(DeviceRule(allow=False, access="rwm"),)))
        assert (cgroup.adoption() is None) == inside
        pid, line = born_into(cgroup)
        cgroup.settle()
        assert open_cgroup(cgroup.place).processes() == (pid,)
        assert cgroup.stats().memory_limit == 30 * MB
        cgroup.set(Resources(memory=Memory(limit=40 * MB)))
        assert cgroup.stats().memory_limit == 40 * MB
        cgroup.kill()
        os.waitpid(pid, 0)
        cgroup.remove()
        os.close(line)

    # systemd has the manager itself in a cgroup of its own, beside which is whatever it starts.
    said = as_user(session, work, cgroup=f"{own}/init.scope" if inside else "")
    assert not said, said
    assert not os.path.exists(f"{layout().unified}{where}")


def born_into(cgroup: Cgroup) -> tuple[int, int]:
    """(a process that waits in it for the end of its line, the line), as containers are born."""
    ours, theirs = channel.pair()
    script = Script()
    script.begin("wait")
    script.descriptor(theirs, CHANNEL)
    script.call("read", CHANNEL, ROOM, 1)
    directory = cgroup.descriptor()
    birth = Birth(script, theirs, ours, (), flags=0, cgroup=directory, adopt=cgroup.adoption())
    pid, pidfd = birth.give(lambda _pid: None)
    for descriptor in (theirs, directory, pidfd):
        os.close(descriptor)
    return pid, ours
