"""The sleeping executable, run by the kernel on this machine and by qemu's user emulation for the others."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from tests import machines

from mamushka.linux import sleeper


@pytest.fixture(params=machines.ALL)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(tmp_path: Path, machine: str, descriptor: int, timeout: float | None) -> subprocess.Popen[bytes]:
    arguments = [b"/bin/sh", b"-c", b'echo "woken $0 $NAME"', b"up"]
    raw = sleeper.image([descriptor], arguments, {b"NAME": b"by name"}, timeout=timeout, machine=machine)
    path = tmp_path / "sleeper"
    path.write_bytes(raw)
    path.chmod(0o700)
    return subprocess.Popen([*machines.emulator(machine), path], pass_fds=[descriptor], stdout=subprocess.PIPE)


def test_it_wakes_when_a_descriptor_becomes_readable(tmp_path: Path, machine: str) -> None:
    reader, writer = os.pipe()
    process = start(tmp_path, machine, reader, None)
    time.sleep(0.3)
    assert process.poll() is None
    os.write(writer, b"x")
    assert process.communicate(timeout=20)[0] == b"woken up by name\n"
    os.close(reader), os.close(writer)


def test_it_wakes_when_the_time_is_up(tmp_path: Path, machine: str) -> None:
    reader, writer = os.pipe()
    begin = time.monotonic()
    process = start(tmp_path, machine, reader, 0.5)
    assert process.communicate(timeout=20)[0] == b"woken up by name\n"
    assert time.monotonic() - begin >= 0.5
    os.close(reader), os.close(writer)


def test_asleep_it_keeps_its_pid_and_next_to_no_memory() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.set_inheritable(reader, True)
        sleeper.sleep(sleeper.image([reader], [b"/bin/sh", b"-c", b"exit 7"], {}), "mamushka-test")
    try:
        while "memfd" not in os.readlink(f"/proc/{pid}/exe"):
            time.sleep(0.01)
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        assert int(rollup.split("Pss:")[1].split()[0]) <= 32  # kB; two pages today
        os.write(writer, b"x")
    finally:
        os.close(writer)
        status = os.waitpid(pid, 0)[1]
        os.close(reader)
    assert os.waitstatus_to_exitcode(status) == 7


def test_an_executable_that_cannot_be_executed_ends_with_127(tmp_path: Path) -> None:
    path = tmp_path / "sleeper"
    path.write_bytes(sleeper.image([], [b"/nowhere"], {}, timeout=0))
    path.chmod(0o700)
    assert subprocess.run([path], check=False).returncode == 127
