"""The process itself: its status, streams, terminal, identity; and further ones beside it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from mamushka.container.spawn import Birth
from mamushka.errors import Conflict, Denied, Invalid, MamushkaError
from mamushka.linux import vfork
from mamushka.linux.terminal import set_size
from mamushka.record import Record
from mamushka.runtime import CannotExecute, CommandNotFound, NotRunning, Stdio
from mamushka.spec.runtime import Box, ExecCPUAffinity, Process, Root, User
from mamushka.values import replace

from .conftest import Ground, reap

pytestmark = pytest.mark.root


@pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 255])
def test_exit_codes_are_the_programs_own(ground: Ground, code: int) -> None:
    assert ground.run(ground.config(f"exit {code}"))[0] == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals_are_told_as_signals(ground: Ground, number: int) -> None:
    started = ground.start(ground.config(f"trap 'trap - {number}; kill -{number} 2' {number}; sleep 60 & wait"))
    ground.runtime.kill(ground.name, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (("no-such-program",), CommandNotFound, "executable file not found in \\$PATH"),
        (("/no/such/program",), CommandNotFound, "no such file or directory"),
        (("/bin/busybox/x",), CommandNotFound, "no such file"),
        (("/bin",), CannotExecute, "is a directory"),
        (("/etc/passwd",), CannotExecute, "permission denied"),
        (("/etc/garbage",), CannotExecute, "exec format error"),
        (("/etc/script",), CommandNotFound, "/etc/script"),
        (("/etc/escape",), CannotExecute, "permission denied"),  # CVE-2019-5736
        (("/proc/self/exe",), CannotExecute, "permission denied"),
        (("/dev/null",), CannotExecute, "permission denied"),
    ],
)
def test_programs_that_cannot_run(ground: Ground, args: tuple[str, ...], kind: type[Exception], message: str) -> None:
    files = {"garbage": b"\x00\x01\x02", "script": b"#!/no/interpreter\n", "escape": b"#! /proc/self/exe -x\n"}
    for name, content in files.items():
        with open(f"{ground.rootfs}/etc/{name}", "wb") as file:
            file.write(content)
        os.chmod(f"{ground.rootfs}/etc/{name}", 0o755)
    with pytest.raises(kind, match=message):
        ground.run(ground.config(*args, "x"))
    assert os.listdir(ground.state) == []


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"cwd": "relative"}, "not an absolute path"),
        ({"cwd": "/etc/passwd"}, "chdir to cwd"),
        ({"cwd": "/proc/self/fd/9"}, "chdir to cwd"),
    ],
)
def test_working_directories_that_cannot_be(ground: Ground, process: dict[str, Any], message: str) -> None:
    with pytest.raises((Invalid, CannotExecute), match=message):
        ground.run(ground.config("true", **process))


def test_a_descriptor_of_the_host_is_no_working_directory(ground: Ground) -> None:
    """CVE-2024-21626: whatever number a host directory might be open under, no program starts there."""
    leaked = [os.open("/", os.O_RDONLY) for _ in range(8)]
    try:
        for number in range(3, 40):
            with pytest.raises(MamushkaError):
                ground.run(ground.config("true", cwd=f"/proc/self/fd/{number}"))
    finally:
        for descriptor in leaked:
            os.close(descriptor)


def test_nothing_of_the_caller_is_inherited(ground: Ground) -> None:
    os.environ["MAMUSHKA_TEST_SECRET"] = "secret"
    leaked = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        text = ground.output(ground.config("env; echo fds /proc/self/fd/*"))
        status = ground.output(ground.config("cat", "/proc/self/status"))
    finally:
        signal.signal(signal.SIGHUP, old)
        os.close(leaked)
        del os.environ["MAMUSHKA_TEST_SECRET"]
    assert "secret" not in text
    descriptors = next(line for line in text.splitlines() if line.startswith("fds")).split()[1:]
    assert [os.path.basename(name) for name in descriptors][:3] == ["0", "1", "2"]
    assert len(descriptors) <= 4  # and the one by which the shell lists them
    signals = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn")))
    # glibc's posix_spawn, by which make starts us, ignores its own two signals, 32 and 33, in every child.
    own = 1 << 31 | 1 << 32
    assert {name: int(mask, 16) & ~own for name, mask in signals.items()} == {"SigBlk": 0, "SigIgn": 0}


def test_environment_home_and_path(ground: Ground) -> None:
    text = ground.output(ground.config("echo $HOME; cat /proc/self/environ", user=User(1000, 1000)))
    assert text.startswith("/home/somebody\n") and "PATH=/bin" in text
    assert ground.output(ground.config("sh", "-c", "echo $HOME", env=("PATH=/x:/bin", "HOME=/given"))) == "/given\n"
    assert ground.output(ground.config("true", "x", env=())) == ""


def test_identity(ground: Ground) -> None:
    user = User(1000, 1001, umask=0o077, additional_gids=(5, 6))
    script = "id -u; id -g; id -G; touch /tmp/x; stat -c %a /tmp/x"
    os.chmod(f"{ground.rootfs}/tmp", 0o1777)
    assert ground.output(ground.config(script, user=user)).split("\n")[:4] == ["1000", "1001", "1001 5 6", "600"]


def test_the_largest_identity(ground: Ground) -> None:
    """Ids have 32 bits; the last one means "none" to the kernel."""
    last = (1 << 32) - 2
    user = User(last, last, additional_gids=(1 << 31,))
    assert ground.output(ground.config("id -u; id -G", user=user)).split() == [str(last), str(last), str(1 << 31)]


def test_the_working_directory_is_made(ground: Ground) -> None:
    script = "readlink /proc/self/cwd; stat -c %u ."
    assert ground.output(ground.config(script, cwd="/made/here", user=User(7, 7))).split() == ["/made/here", "7"]


def test_the_working_directory_is_made_in_a_read_only_root(ground: Ground) -> None:
    config = ground.config("readlink /proc/self/cwd; touch x", cwd="/made/before")
    _, text = ground.run(replace(config, root=Root(ground.rootfs, readonly=True)))
    assert text.startswith("/made/before\n") and "Read-only file system" in text


def test_streams_and_preserved_descriptors(ground: Ground) -> None:
    reading, writing = os.pipe()
    third = os.open("/etc/hostname", os.O_RDONLY)
    fourth = os.memfd_create("x")
    os.write(fourth, b"fourth")
    config = ground.config("cat <&3 >/dev/null; cat /proc/self/fd/4; echo to-stderr >&2")
    stdio = Stdio(third, writing, writing)
    # 1 and 2 crosswise, and preserved ones below and above their places
    started = ground.runtime.run(ground.name, ground.bundle(config), stdio, preserve=(third, fourth))
    os.close(writing)
    assert reap(started) == 0
    assert os.read(reading, 100) == b"fourthto-stderr\n"
    for descriptor in (reading, third, fourth):
        os.close(descriptor)


def test_a_terminal(ground: Ground) -> None:
    script = "tty; stty size; read line; stty size; echo got $line; ls -l /dev/console; sleep 60; exit 9"
    started = ground.start(ground.config(script, terminal=True, console_size=Box(33, 44), user=User(5, 5)))
    text = _read_until(started.console, "33 44")
    assert "/dev/pts/0" in text
    set_size(started.console, 10, 20)
    os.write(started.console, b"line\n")
    text = _read_until(started.console, "console")
    assert "10 20" in text and "got line" in text and "136,   0" in text
    # The shell, as the first process deaf to it, goes on after the interrupted sleep: once that has begun.
    deadline = time.monotonic() + 10
    while os.waitpid(started.pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline, "the interrupt did not reach the sleep"
        os.write(started.console, b"\x03")
        time.sleep(0.05)


def _read_until(descriptor: int, word: str) -> str:
    deadline = time.monotonic() + 10
    text = ""
    while word not in text and time.monotonic() < deadline:
        text += os.read(descriptor, 4096).decode()
    return text


@pytest.mark.parametrize("threaded", [False, True])
def test_where_no_memory_can_be_shared(ground: Ground, monkeypatch: pytest.MonkeyPatch, threaded: bool) -> None:
    """On machines without the few instructions, and hardened systems, the child is forked and does the same."""
    monkeypatch.setattr(vfork, "possible", lambda: False)
    through: list[int] = []
    helped = Birth._through_helper
    monkeypatch.setattr(Birth, "_through_helper", lambda self, fd: through.append(fd) or helped(self, fd))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    others = threading.active_count() > 1  # of a test before this
    if threaded:
        thread.start()
    try:
        assert ground.run(ground.config("echo $$ $HOME; exit 3")) == (3, "1 /root\n")
        ground.start(ground.config("sleep 60"))
        assert ground.exec("echo inside; exit 4") == (4, "inside\n")
        with pytest.raises(CommandNotFound):
            ground.exec("no-such-program", "x")
    finally:
        stop.set()
        if threaded:
            thread.join()
    assert bool(through) == threaded or (others and not threaded), (
        "a fork with more threads goes through the helper, which has one"
    )


def test_a_caller_with_threads(ground: Ground) -> None:
    """The child is the caller's own, although a helper of one thread made it."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert ground.run(ground.config("echo $$; exit 3")) == (3, "1\n")
        ground.start(ground.config("sleep 60"))
        assert ground.exec("ps | grep -c sleep; exit 4")[0] == 4
    finally:
        stop.set()
        thread.join()


# Further processes


def test_exec_is_inside(ground: Ground) -> None:
    ground.start(ground.config("sleep 60"))
    pid = ground.runtime.state(ground.name).pid
    code, text = ground.exec("for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done; exit 9")
    assert code == 9
    files = ("pid", "net", "ipc", "uts", "mnt", "cgroup")
    assert text.split() == [os.readlink(f"/proc/{pid}/ns/{file}") for file in files]
    _, status = ground.exec("cat /proc/self/status; cat /proc/self/cgroup; hostname")
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t0" in status and "CapBnd:\t00000000a80425fb" in status
    assert status.strip().endswith("box")


def test_exec_is_on_the_cpus_it_asks_for(ground: Ground) -> None:
    """execCPUAffinity: the final list holds for the program, the initial one for who makes it and until then."""
    ground.start(ground.config("sleep 60"))
    before = os.sched_getaffinity(0)
    for cpu in before:
        asked = ExecCPUAffinity(initial=str(min(before)), final=str(cpu))
        _, status = ground.exec("grep Cpus_allowed_list /proc/self/status", exec_cpu_affinity=asked)
        assert status.split()[1] == str(cpu)
    _, alone = ground.exec(
        "grep Cpus_allowed: /proc/self/status", exec_cpu_affinity=ExecCPUAffinity(initial=str(min(before)))
    )
    assert int(alone.split()[1].replace(",", ""), 16) & sum(1 << cpu for cpu in before) == sum(1 << c for c in before)
    assert os.sched_getaffinity(0) == before
    for asked, kind in (
        (ExecCPUAffinity(initial="8191"), "none of them"),
        (ExecCPUAffinity(final="8191"), "run on the CPUs 8191"),
        (ExecCPUAffinity(final="one"), "list of CPUs"),
    ):
        with pytest.raises(MamushkaError, match=kind):
            ground.exec("true", exec_cpu_affinity=asked)


def test_exec_failures(ground: Ground) -> None:
    ground.start(ground.config("sleep 60"))
    with pytest.raises(CommandNotFound):
        ground.exec("nope", "x")
    with pytest.raises(CannotExecute):
        ground.exec("/etc/passwd", "x")
    with pytest.raises(CannotExecute, match="chdir"):
        ground.exec("true", cwd="/etc/passwd")
    with pytest.raises(Invalid):
        ground.runtime.exec(ground.name, Process(), Stdio())
    ground.runtime.pause(ground.name)
    with pytest.raises(Conflict, match="paused"):
        ground.exec("true")
    ground.runtime.resume(ground.name)
    assert ground.exec("true")[0] == 0


def test_exec_in_one_that_is_just_ending(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process is a zombie whose namespaces are gone, and the runtime had seen it alive."""
    ground.start(ground.config("sleep 60"))
    pid = ground.runtime.state(ground.name).pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(Record, "open_process", lambda _: os.pidfd_open(pid))
    with pytest.raises(NotRunning):
        ground.exec("true")


def test_exec_on_a_terminal(ground: Ground) -> None:
    ground.start(ground.config("sleep 60"))
    process = Process(args=("sh", "-c", "tty; stty size"), env=("PATH=/bin",), terminal=True, console_size=Box(7, 9))
    started = ground.runtime.exec(ground.name, process, Stdio())
    assert "7 9" in _read_until(started.console, "7 9")
    assert reap(started) == 0
    os.close(started.console)


def test_the_interpreter_cannot_be_reached_from_inside(ground: Ground) -> None:
    """CVE-2019-5736: while exec is being set up, a process inside sees no executable of the host's."""
    watch = (
        "while :; do for p in /proc/[0-9]*; do readlink $p/exe; done; done | while read l; do echo $l; done > /tmp/seen"
    )
    ground.start(ground.config(watch))
    for _ in range(5):
        assert ground.exec("true")[0] == 0
    ground.runtime.kill(ground.name, signal.SIGKILL)
    with open(f"{ground.rootfs}/tmp/seen") as file:
        seen = set(file.read().split())
    assert seen <= {"/bin/busybox"}, seen


def test_a_raised_limit_says_why(ground: Ground) -> None:
    from mamushka.spec.runtime import Rlimit

    limits = (Rlimit("RLIMIT_NOFILE", 512, 256),)
    config = ground.config("ulimit -n; ulimit -Hn", rlimits=limits)
    assert ground.output(config).split() == ["256", "512"]
    too_much = (Rlimit("RLIMIT_NOFILE", 1 << 40, 1 << 40),)
    with pytest.raises((Denied, MamushkaError)):
        ground.run(ground.config("true", rlimits=too_much))
