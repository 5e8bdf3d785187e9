"""A stock kernel as a guest: a script of busybox' shell is its first process, what the console says is kept.

    with linux("head -c 8 /dev/hwrng | md5sum", {"rng": Rng()}, ["virtio-rng"]) as guest:
        assert "  -" in guest.finish()

With ``shell`` there is one at a port of a virtio console, that is told one command after the other (``run``). What a
test plugs in itself, between ``linux`` and ``start``, follows what was named.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mamushka.engine.machines import obstacle
from mamushka.machine.board import Board, ram
from mamushka.machine.boot import initramfs, kernels
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from mamushka.machine.devices.virtio.console import Console, Port
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.executors.kvm import DEVICE, KvmExecutor, probe
from mamushka.machine.executors.kvm.vcpu import prepare_to_kick
from mamushka.machine.machine import OFF
from tests import peers
from tests.lab.kernel import Unavailable, default_cache, kernel

MOUNTS = """mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
"""
# A shell at the port that is called "shell": opened once, for a port is open for one program. The ports are told of by
# the device after its driver was inserted, so they may be late.
_SHELL = """for turn in $(seq 100); do
    for port in /sys/class/virtio-ports/*; do
        if test "$(cat $port/name 2>/dev/null)" = shell && test -c /dev/${port##*/}; then
            exec 3<>/dev/${port##*/}
            sh <&3 >&3 2>&1
            break 2
        fi
    done
    sleep 0.1
done
"""


KERNEL = f"{default_cache()}/kernel"  # as --kernel takes it
_MODULES = ("kvm-amd", "kvm-intel", "tun", "vhost_net")


def load(*modules: str) -> None:
    """Insert what there is of modules: in the lab nobody else does."""
    program = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    for module in modules if program else ():
        subprocess.run([str(program), "-q", module], check=False, stderr=subprocess.DEVNULL)


def need_machines(*modules: str) -> None:
    """Skips where no image can be run in a machine; ``modules`` are what else a test wants inserted."""
    load(*_MODULES, *modules)
    lacking = obstacle(KERNEL)
    if lacking:
        pytest.skip(f"{lacking}: make lab runs it")


def busybox_root(path: Path, programs: str) -> Path:
    """A root with a static busybox under these names, and a user."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (path / name).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    peers.need("busybox")
    shutil.copy(peers.find("busybox"), path / "bin" / "busybox")
    for name in programs.split():
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n")
    return path


def usable() -> bool:
    """Whether this host's KVM runs a stock kernel."""
    load(*_MODULES)
    return os.access(DEVICE, os.R_OK | os.W_OK) and probe.probe().usable


needs_linux = [
    pytest.mark.lab,
    pytest.mark.skipif(not usable(), reason="no KVM here that runs a stock kernel: make lab"),
    pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="needs busybox-static"),
]


def stock() -> kernels.Kernel:
    """The lab's kernel and its modules; skips where it is not there."""
    try:
        return kernels.at(os.path.dirname(os.path.dirname(kernel(default_cache()).image)))
    except Unavailable as error:
        pytest.skip(str(error))


def first_files(
    found: kernels.Kernel, script: str, modules: Sequence[str] = (), programs: Mapping[str, Path] | None = None
) -> list[bytes]:  # fmt: skip
    """Two archives: busybox, the programs and a script as the first process; and modules, which it inserts first."""
    peers.need("busybox")
    files = Modules(found.modules)
    order = files.order(modules)
    insert = "".join(f"insmod /modules/{module_name(path)}.ko\n" for path in order)
    text = "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox mkdir -p /bin\n/bin/busybox --install -s /bin\n"
    text += f"{MOUNTS}{insert}{script}\n"
    paths = {"busybox": Path(peers.find("busybox")), **(programs or {})}
    return [
        initramfs.archive(
            [
                program("init", text.encode()),
                *(program(f"bin/{name}", path.read_bytes()) for name, path in paths.items()),
            ]
        ),
        initramfs.archive(Member(f"modules/{module_name(path)}.ko", content=files.read(path)) for path in order),
    ]


class Guest:
    """The board, its console, and with a shell the host's side of that."""

    def __init__(self, board: Board, archives: Sequence[bytes], words: Sequence[str], image: str) -> None:
        self.board, self.machine = board, board.machine
        self._archives, self._words, self._image = archives, words, image
        self._said, self._lock = bytearray(), threading.Lock()
        self.seconds = 0.0  # from start to finish
        board.console(self._listen)

    def start(self) -> None:
        """Boot, with all that was plugged in."""
        line = command_line(["mitigations=off", *self._words])
        entry = self.board.boot(self._image, command_line=line, initramfs=self._archives)
        self._begin = time.monotonic()
        self.machine.start(entry)

    def _listen(self, content: bytes) -> None:
        with self._lock:
            self._said += content

    @property
    def said(self) -> str:
        """All that the console said so far, without carriage returns."""
        with self._lock:
            return self._said.decode(errors="replace").replace("\r", "")

    def until(self, words: str, seconds: float = 120) -> str:
        """Wait for these words of its console."""
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end and self.machine.end is None, self.said[-3000:]
            time.sleep(0.02)
        return self.said

    def finish(self, seconds: float = 200) -> str:
        """What the console said by the time it had switched itself off; starts it where that has not been done."""
        if not hasattr(self, "_begin"):
            self.start()
        end = self.machine.wait(seconds)
        self.seconds = time.monotonic() - self._begin
        assert end is not None, f"it goes on:\n{self.said[-3000:]}"
        assert end.kind == OFF, f"{end}\n{self.said[-3000:]}"
        return self.said


class Shell(Guest):
    """A guest that is told what to do, command by command; hvc0 is its other terminal."""

    def __init__(self, board: Board, archives: Sequence[bytes], words: Sequence[str], image: str) -> None:
        super().__init__(board, archives, words, image)
        self._from, shell_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        shell_in, self._to = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.keyboard, self.keys = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fds = (self._from, shell_out, shell_in, self._to, self.keyboard, self.keys)
        self.typed: list[bytes] = []  # what came out of hvc0
        self.console = Console((Port(self.keyboard, self.typed.append), Port(shell_in, shell_out, "shell")))
        board.add("console", self.console)
        self._count = 0

    def tell(self, command: str) -> None:
        """Have a command begun, and do not wait for it."""
        os.write(self._to, f"{command}\n".encode())

    def run(self, command: str, seconds: float = 60) -> str:
        """What a command prints."""
        self._count += 1
        mark = f"@{self._count}@"
        self.tell(f"{command}; echo '@'{self._count}'@'")
        found, end = b"", time.monotonic() + seconds
        while f"\n{mark}\n".encode() not in b"\n" + found:
            assert time.monotonic() < end, (command, found, self.said[-2000:], self.machine.end)
            if select.select([self._from], [], [], 0.5)[0]:
                found += os.read(self._from, 1 << 16)
        return found.decode(errors="replace").replace("\r", "").rpartition(mark)[0].strip()

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@contextmanager
def linux(
    script: str = "", devices: Mapping[str, Device] | None = None, modules: Sequence[str] = (),
    programs: Mapping[str, Path] | None = None, *, vcpus: int = 1, memory: int = 256 << 20, words: Sequence[str] = (),
) -> Iterator[Guest]:  # fmt: skip
    """A guest that performs a script and switches itself off; plugged together and not started."""
    found = stock()
    archives = first_files(found, f"{script}\npoweroff -f", ("virtio_mmio", *modules), programs)
    board = _board(vcpus, memory)
    try:
        guest = Guest(board, archives, words, found.image)
        for name, device in (devices or {}).items():
            board.add(name, device)
        yield guest
    finally:
        board.close()


@contextmanager
def shell(modules: Sequence[str] = (), *, vcpus: int = 1, memory: int = 256 << 20) -> Iterator[Shell]:
    """A guest with a shell; plugged together and not started."""
    found = stock()
    script = f"{_SHELL}echo no shell\npoweroff -f"
    archives = first_files(found, script, ("virtio_mmio", "virtio_console", *modules))
    board = _board(vcpus, memory)
    guest = Shell(board, archives, (), found.image)
    try:
        yield guest
    finally:
        board.close()
        guest.close()


def _board(vcpus: int, memory: int) -> Board:
    prepare_to_kick()
    return Board(KvmExecutor(), ram(memory), vcpus=vcpus)
