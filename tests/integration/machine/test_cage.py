"""The cage around a monitor: what its threads may do, held against what they do, and against what they may not."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.linux import memory
from mamushka.linux.capabilities import current
from mamushka.linux.landlock import abi
from mamushka.linux.socket import disconnect
from mamushka.machine import filters
from mamushka.machine.cage import Cage
from mamushka.machine.machine import CONTROL, DEVICES, VCPU
from tests import peers
from tests.integration.machine.guests import needs_kvm

KINDS = (VCPU, DEVICES, CONTROL)


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


def caged(
    act: Callable[[], object],
    kind: str = "",
    before: Callable[[], object] = lambda: None,
    ports: tuple[int, ...] = (),
) -> int:
    """Do something in a child behind the cage, and behind a kind's filter; how the child ended. 3: it raised."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            before()
            cage = Cage()
            cage.close(ports)
            if kind:
                cage.enter(kind)
            act()
            status = 0
        except Exception as error:
            if not kind:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_interpreter_at_work_needs_nothing_more(kind: str) -> None:
    def work() -> None:
        held = [bytearray(1 << 20) for _ in range(64)]
        del held
        assert len("".join(str(number) for number in range(200_000))) > 1000
        try:
            raise ValueError("caught")
        except ValueError:
            pass

    assert caged(work, kind) == 0


def _fork() -> None:
    os.fork()


def mprotect(address: int) -> None:
    """Make a page executable."""
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 5)


FORBIDDEN: dict[str, Callable[[], object]] = {
    "open": lambda: os.open("/", os.O_RDONLY),
    "fork": _fork,
    "execute": lambda: os.execve("/bin/true", ["true"], {}),
    "signal another": lambda: os.kill(1, 0),
    "change ids": lambda: os.setuid(1),
    "look": lambda: os.stat("/"),
    "map executable": lambda: memory.mmap(0, 4096, 5, memory.MAP_PRIVATE | memory.MAP_ANONYMOUS, -1, 0),
    "have another signalled": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, 1),
    "choose by what": lambda: fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL),
    "have it signalled at all": lambda: fcntl.fcntl(0, fcntl.F_SETFL, os.O_RDONLY | os.O_ASYNC),
    "have another signalled by a socket": lambda: fcntl.ioctl(0, 0x8901, struct.pack("i", 1)),
    "type for another": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
    "make a machine": lambda: fcntl.ioctl(0, 0xAE01, 0),
    "make executable": lambda: mprotect(memory.mmap(0, 4096, 3, memory.MAP_PRIVATE | memory.MAP_ANONYMOUS, -1, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_not_listed_ends_the_process(kind: str, what: str) -> None:
    assert caged(FORBIDDEN[what], kind) == -signal.SIGSYS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_of_kvm_and_of_streams_is_allowed(kind: str) -> None:
    def ask() -> None:
        assert _refused(lambda: fcntl.ioctl(null, 0xAE80, 0))  # by /dev/null, which is no virtual CPU
        if kind != VCPU:
            os.set_blocking(os.dup(null), False)

    null = os.open("/dev/null", os.O_RDWR)
    try:
        assert caged(ask, kind) == 0
    finally:
        os.close(null)


@pytest.mark.skipif(abi() < 4, reason="Landlock's ABI is older than 4")
def test_one_port_can_be_connected_to_by_a_socket_that_was_there_before() -> None:
    """Again and again, as names are asked for over TCP; no other port, and no other kind of socket can be made."""
    with socket.create_server(("127.0.0.1", 0)) as wanted, socket.create_server(("127.0.0.1", 0)) as other:
        ours = socket.socket()

        def connect() -> None:
            for _ in range(3):
                ours.connect(wanted.getsockname())
                disconnect(ours.fileno())
            with pytest.raises(PermissionError):
                ours.connect(other.getsockname())

        assert caged(connect, DEVICES, ports=(wanted.getsockname()[1],)) == 0
        assert caged(lambda: ours.connect(wanted.getsockname()), DEVICES) == 3
        assert caged(socket.socket, DEVICES, ports=(wanted.getsockname()[1],)) == -signal.SIGSYS
        ours.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_import_is_an_error_that_can_be_read(kind: str) -> None:
    def forgotten() -> None:
        sys.modules.pop("wave", None)
        try:
            import wave  # noqa: F401
        except ModuleNotFoundError:
            os._exit(7)

    assert caged(forgotten, kind) == 7


def test_without_the_filters_there_is_still_no_way_out() -> None:
    def look() -> None:
        assert _refused(lambda: os.listdir("/")) if abi() else os.listdir("/") == []
        assert current() == (0, 0, 0)
        assert _refused(lambda: os.open("/new", os.O_CREAT | os.O_WRONLY))
        assert _refused(lambda: os.mkdir("/new"))
        assert _refused(lambda: os.setuid(1))
        assert _refused(lambda: os.chroot("/"))
        import _socket

        assert not [name for name in _socket_names() if name != "lo"]
        outside = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        assert _refused(lambda: outside.connect(("192.0.2.1", 80)))

    assert caged(look, before=lambda: (__import__("_socket"), _socket_names())) == 0


def _socket_names() -> list[str]:
    import _socket

    return [name for _, name in _socket.if_nameindex()]


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return True
    return False


@pytest.mark.skipif(abi() < 6, reason="Landlock scopes signals from Linux 6.12 on")
def test_without_the_filters_nobody_else_can_be_signalled() -> None:
    assert caged(lambda: os._exit(0 if _refused(lambda: os.kill(os.getppid(), 0)) else 4)) == 0


def test_the_lists_are_short() -> None:
    assert len(filters.calls(VCPU)) <= 27
    assert len(filters.calls(DEVICES)) <= 64
    assert len(filters.calls(CONTROL)) <= 50
    for kind in KINDS:
        assert all(filters.calls(kind).values()), "each call has its reason"


# A machine at work behind its cage: two virtual CPUs, exits of both kinds, a device's doorbell, a pause, an end.
_MACHINE = """
import os, sys, threading
sys.path[:0] = {path!r}
from mamushka.machine.cage import Cage
from mamushka.machine.machine import Machine, DEVICES
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.memory import Memory, Region
from mamushka.machine.vcpu import Entry
memory = Memory((Region(0, 1 << 20),))
memory.write(0x1000, bytes.fromhex({code!r}))
made = Machine(KvmExecutor(interrupts=False), memory, vcpus=1)
bell = os.eventfd(0)
made.executor.doorbell(0x700, 1, None, bell, port=True)
rung = threading.Event()
made.loop.watch(bell, lambda events: (os.eventfd_read(bell), rung.set()))
cage = Cage()
cage.close()
made.start(Entry("protected", {{"rip": 0x1000, "rsp": 0x8000}}), confine=cage.enter)
assert rung.wait(20)
made.pause()
made.resume()
memory.write(0x4000, b"\\1")
made.wait(20)
os._exit(0 if made.end.kind == "off" else 5)
"""
_SOURCE = """
    mov dx, 0x600
    in al, dx
    mov dx, 0x700
    out dx, al
again:
    mov ebx, 0xd0000000
    mov eax, [ebx]
    cmp byte ptr [0x4000], 0
    je again
    hlt
"""


@needs_kvm
def test_what_is_listed_is_what_is_called(tmp_path: Path) -> None:
    """Traced: each thread's calls after its filter are on its list, so that the lists tell all that can happen."""
    from tests.integration.machine.guests import assemble

    if not shutil.which("strace"):
        pytest.skip("no strace: apt-get install strace")
    program = _MACHINE.format(path=[path for path in sys.path if path], code=assemble(_SOURCE).hex())
    trace = tmp_path / "trace"
    command = ["strace", "-ff", "-qq", "-e", "signal=none", "-o", str(trace), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {}
    for path in tmp_path.glob("trace.*"):
        # What comes behind the thread's own filter; only the filter of a kind follows no_new_privs.
        text = path.read_text(errors="replace")
        _, installed, after = text.rpartition("SECCOMP_SET_MODE_FILTER")
        if installed:
            calls = set(re.findall(r"^(\w+)\(", after.partition("\n")[2], re.M))
            found[_kind(calls)] = found.get(_kind(calls), set()) | calls
    assert set(found) == set(KINDS)
    for kind, calls in found.items():
        assert calls <= set(filters.calls(kind)), kind


def _kind(calls: set[str]) -> str:
    if "epoll_wait" in calls:
        return DEVICES
    return CONTROL if "exit_group" in calls else VCPU
