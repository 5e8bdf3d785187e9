"""Scripts of system calls: what the few instructions do with them, on this machine and on the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import machines

from mamushka.linux import script as scripts
from mamushka.linux import vfork
from mamushka.linux.process import CLONE_CLEAR_SIGHAND
from mamushka.linux.script import ANY, CHANNEL, FURTHER, NEXT, ROOM, Label, Script, Variable, parse, variable

SOURCES = Path(scripts.__file__).parent / "machine"
TOOLS = {"x86_64": "", "aarch64": "aarch64-linux-gnu-", "riscv64": "riscv64-linux-gnu-"}
ENOENT, EACCES, EEXIST = 2, 13, 17


@pytest.fixture(params=machines.ALL)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def perform(script: Script) -> tuple[int, bytes]:
    """(exit code, what it said on its channel and standard output)."""
    script.give(CHANNEL, 1)
    fd = script.executable("test-script")
    try:
        words = [*machines.emulator(script.machine), f"/proc/self/fd/{fd}"]
        done = subprocess.run(words, pass_fds=(fd,), capture_output=True, timeout=20, check=False)
    finally:
        os.close(fd)
    return done.returncode, done.stdout


def say(script: Script, text: bytes) -> None:
    script.call("write", 1, text, len(text))


def end(script: Script) -> Script:
    script.call("exit_group", 0)
    return script


def test_calls_follow_one_another_and_results_are_arguments(machine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    script, opened, size = Script(machine), variable(FURTHER), variable(FURTHER + 1)
    script.call("openat", -100, os.fsencode(tmp_path / "file"), os.O_RDONLY, 0, into=opened)
    script.call("read", opened, ROOM, 100, into=size)
    script.call("write", 1, ROOM, size)
    script.call("close", opened)
    assert perform(end(script)) == (0, b"content")


def test_errors_lead_where_the_row_says(machine: str, tmp_path: Path) -> None:
    missing, wrong = os.fsencode(tmp_path / "missing"), Label()
    script, there, last = Script(machine), Label(), Label()
    script.call("chdir", missing, on={EACCES: wrong, ENOENT: there})
    script.mark(wrong)
    say(script, b"wrong ")
    script.mark(there)
    script.call("chdir", missing, on={EACCES: wrong, EEXIST: wrong, ANY: NEXT})
    say(script, b"ignored ")
    script.call("chdir", missing, on={EACCES: wrong, EEXIST: wrong, ENOENT: last})
    say(script, b"wrong ")
    script.mark(last)
    say(script, b"third")
    assert perform(end(script)) == (0, b"ignored third")


def test_comparisons_and_shared_rows(machine: str) -> None:
    script, number, back = Script(machine), variable(FURTHER), variable(FURTHER + 1)
    high, low, shared, begin = Label(), Label(), Label(), Label()
    script.jump(begin)
    script.mark(shared)
    say(script, b"shared ")
    script.leap(back)
    script.mark(begin)
    script.store(-5, number)
    script.compare(number, -1, -5, high)
    script.jump(shared, back)
    script.compare(number, 0xFF, 0xFB, high)
    script.jump(shared, back)
    script.compare(number, -1, 5, low)
    script.mark(high)
    say(script, b"wrong")
    script.mark(low)
    say(script, b"done")
    assert perform(end(script)) == (0, b"shared shared done")


def test_a_failure_says_what_where_and_about_what(machine: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "missing")
    script = Script(machine)
    script.begin("kind\0look around")
    script.call("chdir", path, about=f": {os.fsdecode(path)!r}")
    code, packet = perform(script)
    text = f"chdir: No such file or directory: {os.fsdecode(path)!r}"
    assert (code, parse(packet)) == (126, (ENOENT, "kind", "look around", text))
    script = Script(machine)
    script.begin("\0give up")
    script.fail(EACCES, "=there is a better reason")
    assert parse(perform(script)[1]) == (EACCES, "", "give up", "there is a better reason")


def test_a_script_that_cannot_tell_ends_all_the_same(machine: str) -> None:
    script = Script(machine)
    script.give(CHANNEL, 99)
    script.fail(EACCES)
    fd = script.executable("test-script")
    words = [*machines.emulator(machine), f"/proc/self/fd/{fd}"]
    assert subprocess.run(words, pass_fds=(fd,), timeout=20, check=False).returncode == 126
    os.close(fd)


def test_a_script_of_many_rows_and_long_texts(machine: str) -> None:
    script = Script(machine)
    for number in range(3000):
        script.store(number, variable(FURTHER))
    text = bytes(range(1, 255)) * 2000
    script.call("write", 1, script.text(text), len(text))
    script.begin("\0" + "d" * 5000)
    script.fail(EACCES, "=" + "t" * 9000)
    code, told = perform(script)
    assert code == 126 and told.startswith(text)
    _, _, description, reason = parse(told[len(text) :])
    assert set(description) == {"d"} and set(reason) == {"t"} and min(len(description), len(reason)) > 1000


def test_only_what_fits_is_written() -> None:
    script = Script()
    script.room(1 << 31)
    with pytest.raises(ValueError, match="bytes of data"):
        script.executable("test-script")


def test_nobody_can_change_or_execute_it_once_it_runs() -> None:
    """What ``#!/proc/self/exe`` would lead to: the executable is sealed, and gives up its mode before anything else."""
    reading, writing = os.pipe()
    waiting, going = os.pipe()
    script = Script()
    script.descriptor(writing, CHANNEL)
    script.call("write", CHANNEL, b"R", 1)
    script.call("read", script.descriptor(waiting), ROOM, 1)
    script.call("exit_group", 0)
    fd = script.executable("test-script")
    pid, pidfd = vfork.spawn(fd, script.descriptors, 0)
    assert os.read(reading, 1) == b"R"
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:test-script")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.execve(fd, ["x"], {})
    os.write(going, b"x")
    os.waitpid(pid, 0)
    for descriptor in (reading, writing, waiting, going, fd, pidfd):
        os.close(descriptor)


# The child that shares our memory


@pytest.fixture
def needs_vfork() -> Iterator[None]:
    if not vfork.possible():
        pytest.skip(f"no instructions for {machines.HERE}, or a system that executes nothing that was written")
    yield


@pytest.mark.usefixtures("needs_vfork")
def test_descriptors_pass_and_no_others() -> None:
    reading, writing = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)
    script, fine, leaked = Script(), Label(), Label()
    script.descriptor(writing, CHANNEL)
    script.call("fcntl", other, 1, 0, on={9: fine})  # F_GETFD, EBADF
    script.mark(leaked)
    script.call("exit_group", 3)
    script.mark(fine)
    script.call("write", CHANNEL, b"fine", 4)
    script.call("exit_group", 0)
    fd = script.executable("test-script")
    pid, pidfd = vfork.spawn(fd, script.descriptors, CLONE_CLEAR_SIGHAND)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(reading, 10) == b"fine"
    assert not os.get_inheritable(writing), "the child's descriptors are its own"
    for descriptor in (reading, writing, other, fd, pidfd):
        os.close(descriptor)


def children() -> str:
    return Path("/proc/thread-self/children").read_text()


@pytest.mark.usefixtures("needs_vfork")
def test_what_cannot_be_executed_leaves_no_child() -> None:
    before = os.listdir("/proc/self/fd"), children()
    fd = os.memfd_create("no-program", os.MFD_CLOEXEC)
    os.write(fd, b"\x7fELF nonsense")
    with pytest.raises(OSError, match="Exec format error"):
        vfork.spawn(fd, [], CLONE_CLEAR_SIGHAND)
    os.close(fd)
    with pytest.raises(OSError, match="Invalid argument"):
        vfork.spawn(0, [], 1 << 62)
    assert (os.listdir("/proc/self/fd"), children()) == before


@pytest.mark.usefixtures("needs_vfork")
def test_many_threads_make_children_at_once() -> None:
    """While others allocate and collect: the child touches nothing but its own order."""
    failed: list[BaseException] = []

    def make() -> None:
        try:
            for _ in range(40):
                script = Script()
                script.call("exit_group", 7)
                fd = script.executable("test-script")
                pid, pidfd = vfork.spawn(fd, script.descriptors, CLONE_CLEAR_SIGHAND)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
                os.close(fd), os.close(pidfd)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# The instructions are those of the sources


def assembled(source: str, prefix: str, tmp_path: Path) -> bytes:
    for tool in ("as", "objcopy"):
        if shutil.which(prefix + tool) is None:
            package = "binutils" + (f"-{prefix.strip('-')}" if prefix else "")
            pytest.skip(f"{prefix}{tool} is missing: apt-get install {package}")
    subprocess.run([f"{prefix}as", SOURCES / source, "-o", tmp_path / "o"], check=True)
    subprocess.run([f"{prefix}objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "b"], check=True)
    return (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.s")))
def test_the_instructions_are_the_sources_assembled(name: str, tmp_path: Path) -> None:
    machine = re.sub(r"^spawn_", "", name.removesuffix(".s"))
    prefix = "" if machine == machines.HERE else TOOLS[machine]
    codes = vfork._CODES if name.startswith("spawn_") else scripts._CODES
    assert assembled(name, prefix, tmp_path).hex() == codes[machine]


def test_variables_do_not_overlap() -> None:
    last = variable(scripts._VARIABLES_MAX - 1)
    assert isinstance(last, Variable) and last.address + 4 <= scripts._PARTS
    assert scripts.ROOM + scripts.ROOM_SIZE <= scripts.PACKET
    assert scripts.PACKET + scripts.PACKET_SIZE <= scripts.ANSWER
    assert scripts.ANSWER + scripts.ANSWER_SIZE <= scripts._ROWS
