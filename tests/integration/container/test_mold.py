"""Further containers from one bundle, whose script is cast: each is as if it were the only one."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from mamushka.container import mold
from mamushka.runtime import Bundle, Stdio
from mamushka.spec.runtime import Config, Mount

from .conftest import Ground, Output, reap

pytestmark = pytest.mark.root

# What the container's id, its descriptors, its caller and its image can be seen by.
_LOOK = """
cat /proc/self/cgroup; cat /proc/keys; ls -l /proc/self/fd | wc -l; cat <&0
echo HOME=$HOME; grep SigIgn /proc/self/status; ls /given; set -- $(cat /sys/fs/cgroup/*/cgroup.procs); echo $#
"""


def _run(ground: Ground, suffix: str, config: Config, said: bytes = b"") -> str:
    """The container's whole output, its own id written ID; of the keyrings, other sessions' too, its own is there."""
    id = f"{ground.name}-{suffix}"
    reading, writing = os.pipe()
    os.write(writing, said)
    os.close(writing)
    with Output() as output:
        bundle = Bundle(os.path.dirname(ground.rootfs), config)
        started = ground.runtime.run(id, bundle, Stdio(reading, output.writing, output.writing))
        os.close(reading)
        try:
            assert reap(started) == 0
        finally:
            ground.runtime.delete(id, force=True)
        text = output.text()
    assert f"_mmk.{id}: " in text or "keyring" not in text
    return "\n".join(line for line in text.replace(id, "ID").splitlines() if "keyring" not in line)


@pytest.fixture
def config(ground: Ground, tmp_path: Any) -> Config:
    """A bundle whose cgroup is named by the container."""
    mold._molds.clear()
    os.makedirs(tmp_path / "given")
    given = Mount("/given", "bind", str(tmp_path / "given"), ("rbind",))
    return ground.config(_LOOK, linux={"cgroups_path": "", "masked_paths": ()}, mounts=[given])


def test_a_cast_container_is_like_the_first(ground: Ground, config: Config) -> None:
    first = _run(ground, "one", config, b"hello\n")
    assert not mold._molds, "one container alone must not pay for a mold"
    second = _run(ground, "two", config, b"hello\n")
    assert len(mold._molds) == 1
    spare = [os.open("/", os.O_RDONLY) for _ in range(7)]  # other numbers for all descriptors
    try:
        third = _run(ground, "six", config, b"hello\n")
    finally:
        for descriptor in spare:
            os.close(descriptor)
    assert len(mold._molds) == 1, "the third was not cast"
    assert "hello" in first
    assert first == second == third


def test_a_cast_container_is_in_its_own_cgroup(ground: Ground) -> None:
    config = ground.config(
        "set -- $(cat /sys/fs/cgroup/*/cgroup.procs); echo $#; sleep 9 & wait", linux={"cgroups_path": ""}
    )
    ids = [f"{ground.name}-{suffix}" for suffix in ("one", "two", "six")]
    counts = []
    for id in ids:
        with Output() as output:
            bundle = Bundle(os.path.dirname(ground.rootfs), config)
            ground.made.append(ground.runtime.run(id, bundle, Stdio(0, output.writing, output.writing)))
            counts.append(os.read(output.reading, 100))
    deadline = time.monotonic() + 10
    for id in ids:
        while len(ground.runtime.processes(id)) != 2:  # its shell and its sleep, wherever others are
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len({*counts}) == 1


@pytest.mark.parametrize("change", ["home", "signal", "given", "length"])
def test_what_has_changed_between_two_is_seen(ground: Ground, config: Config, tmp_path: Any, change: str) -> None:
    for _ in range(3):
        before = _run(ground, "one", config)
    suffix = "one"
    ignored = signal.getsignal(signal.SIGUSR1)
    try:
        if change == "home":
            with open(f"{ground.rootfs}/etc/passwd", "w") as file:
                file.write("root:x:0:0::/elsewhere:/bin/sh\n")
        elif change == "signal":
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        elif change == "given":
            os.rmdir(tmp_path / "given")
            (tmp_path / "given").write_text("")
            os.rmdir(f"{ground.rootfs}/given")
        else:
            suffix = "of-another-length"
        after = _run(ground, suffix, config)
    finally:
        signal.signal(signal.SIGUSR1, ignored)
    expected = before
    if change == "home":
        expected = expected.replace("HOME=/root", "HOME=/elsewhere")
    elif change == "given":
        expected = "\n".join([*expected.splitlines()[:-1], "/given", expected.splitlines()[-1]])
    assert after == expected


def test_a_failure_of_a_cast_container_is_its_own(ground: Ground) -> None:
    config = ground.config("/bin/nothing", "there", linux={"cgroups_path": ""})
    for suffix in ("one", "two", "six"):
        with pytest.raises(Exception, match="/bin/nothing"):
            _run(ground, suffix, config)
        assert not os.path.exists(f"{ground.state}/{ground.name}-{suffix}")


def test_the_latest_molds_are_kept(ground: Ground) -> None:
    mold._molds.clear()
    for number in range(mold._KEPT_MAX + 2):
        config = ground.config(f"exit {number % 2 * 0}", linux={"cgroups_path": ""})
        for _ in range(2):
            _run(ground, "one", config)
    assert len(mold._molds) == mold._KEPT_MAX


def test_homes_are_told_as_the_container_sees_them(ground: Ground, tmp_path: Any) -> None:
    """A link, a device or a mount in the way of /etc/passwd: who looks beforehand must not be misled."""
    passwd = f"{ground.rootfs}/etc/passwd"
    script = "echo $HOME"
    other = tmp_path / "passwd"
    other.write_text("root:x:0:0::/mounted:/bin/sh\n")
    mount = Mount("/etc/passwd", "bind", str(other), ("bind",))
    assert ground.output(ground.config(script, mounts=[mount])) == "/mounted\n"
    os.rename(passwd, f"{ground.rootfs}/tmp/passwd")
    os.symlink("/tmp/passwd", passwd)
    assert ground.output(ground.config(script)) == "/root\n"
    os.unlink(passwd)
    os.symlink(str(other), passwd)  # the host's: not there inside
    assert ground.output(ground.config(script)) == "/root\n"
    os.unlink(passwd)
    os.mknod(passwd, 0o020666, os.makedev(1, 5))  # /dev/zero, which never ends
    assert ground.output(ground.config(script)) == "/root\n"
    os.unlink(passwd)
    assert ground.output(ground.config(script)) == "/root\n"
