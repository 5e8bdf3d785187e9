"""What machines are measured with: kernels, guests for ours and for QEMU (qemu.py), a machine of ours in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from tests.lab.kernel import Unavailable, default_cache, kernel

from mamushka.machine import kit
from mamushka.machine.board import Board, ram
from mamushka.machine.boot import kernels
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, archive, program
from mamushka.machine.boot.kernels import Kernel
from mamushka.machine.boot.modules import Modules, module_name
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.executors.kvm import DEVICE, KvmExecutor
from mamushka.machine.executors.kvm.probe import probe

MEMORY = 512 << 20
EMULATED = "TCG"  # in the name that QEMU gives its emulated processor
# Entered as a PVH kernel it ends at once: an interrupt without a table is a triple fault.
_MINI = """
.section .note, "a"
.long 4, 4, 18
.asciz "Xen"
.long start
.text
.code32
.globl start
start: lidt [nowhere]
int3
nowhere: .long 0, 0
"""


def host() -> str:
    """The processor, and what kind of KVM is on it: what every figure must be read with."""
    name, found = _processor(), probe()
    if emulated():
        return f"{name}: EMULATED by QEMU (TCG), no figure of a processor; ratios only"
    if not found.usable:
        return f"{name}: {found.kind.upper()} KVM, no figure of a processor's virtualization ({found.reason})"
    return f"{name}, {found.kind} KVM"


def emulated() -> bool:
    """Whether the processor is QEMU's emulation: times mean nothing then, ratios something."""
    return EMULATED in _processor()


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")


def lacking() -> str:
    """Why a stock kernel cannot be measured here; empty where it can."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} cannot be opened"
    found = probe()
    if not found.usable:
        return f"this KVM runs no stock kernel: {found.reason}"
    try:
        stock()
    except Unavailable as error:
        return str(error)
    return ""


def stock() -> Kernel:
    """The kernel of all measurements. Unavailable where there is none."""
    return kernels.at(os.path.dirname(os.path.dirname(kernel(default_cache()).image)))


def line() -> bytes:
    """The command line that ours gets."""
    return command_line()


def mini(place: str) -> str:
    """The smallest kernel, assembled."""
    with open(f"{place}/mini.s", "w") as file:
        file.write(f".intel_syntax noprefix\n{_MINI}")
    subprocess.run(["as", "--32", "-o", f"{place}/mini.o", f"{place}/mini.s"], check=True)
    linked = [
        "ld",
        "-N",
        "--no-warn-rwx-segments",
        "-m",
        "elf_i386",
        "-Ttext=0x100000",
        "-e",
        "start",
        "-o",
        f"{place}/mini",
        f"{place}/mini.o",
    ]
    subprocess.run(linked, check=True)
    return f"{place}/mini"


def initramfs(place: str) -> str:
    """The modules of ours, and a first process that ends the machine when all is done."""
    first, path = f"{place}/guest", f"{place}/initramfs"
    source = os.path.join(os.path.dirname(__file__), "guest.c")
    subprocess.run(["cc", "-static", "-Os", "-o", first, source], check=True)
    with open(path, "wb") as file:
        file.write(archive(kit.members(stock(), first, kit.SHARED)))
    return path


def board(image: str, initial: bytes = b"", words: bytes = b"") -> tuple[Board, Callable[[], None]]:
    """A machine with the devices that all have, and what starts it and waits for its end."""
    made = Board(KvmExecutor(), ram(MEMORY))
    made.add("vsock", Vsock())
    made.add("rng", Rng())
    made.console(lambda _: None)
    entry = made.boot(image, command_line=words, initramfs=(initial,) if initial else ())

    def run() -> None:
        made.machine.start(entry)
        if made.machine.wait(300) is None:
            raise RuntimeError("the machine did not end")

    return made, run


def files(script: str, modules: Sequence[str]) -> bytes:
    """A first file system whose first process is a script of busybox' shell, with these modules inserted."""
    found = Modules(stock().modules)
    order = {path: f"modules/{module_name(path)}.ko" for path in found.order(("virtio_mmio", *modules))}
    insert = "".join(f"insmod /{name}\n" for name in order.values())
    text = f"#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n{insert}{script}\npoweroff -f\n"
    with open("/bin/busybox", "rb") as file:
        members = [program("bin/busybox", file.read()), program("init", text.encode())]
    return archive([*members, *(Member(name, content=found.read(path)) for path, name in order.items())])


class Shell:
    """A guest with such a first file system, and what it says; it is closed by its user."""

    def __init__(self, initial: bytes, plug: Callable[[Board], object]) -> None:
        self.board = Board(KvmExecutor(), ram(MEMORY))
        self._said, self._lock = bytearray(), threading.Lock()
        plug(self.board)
        self.board.console(self._listen)
        self._entry = self.board.boot(stock().image, command_line=line(), initramfs=(initial,))

    def start(self) -> None:
        """Let it run; its counters are opened before, as a virtual CPU that sleeps would not hand them over."""
        self.count()
        self.board.machine.start(self._entry)

    def _listen(self, content: bytes) -> None:
        with self._lock:
            self._said += content

    def until(self, mark: str, seconds: float = 300) -> tuple[int, int]:
        """Wait for its word; (exits that reached Python, exits in all) until then."""
        end = time.monotonic() + seconds
        while mark.encode() not in bytes(self._said):
            if time.monotonic() > end or self.board.machine.end is not None:
                raise RuntimeError(f"the guest did not say {mark!r} but {bytes(self._said[-500:])!r}")
            time.sleep(0.02)
        return self.count()

    def count(self) -> tuple[int, int]:
        """(exits that reached Python, exits in all) until now."""
        machine = self.board.machine
        python = sum(sum(counts.copy().values()) for counts in machine.exits)
        return python, machine.executor.counts().get("exits", 0)


def forked(act: Callable[[], object]) -> float:
    """Processor seconds of a child that does this and ends, as a monitor ends; with those of making the child."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"the child ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def executed(words: list[str]) -> float:
    """Processor seconds of a program."""
    pid = os.posix_spawnp(words[0], words, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{words[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime
