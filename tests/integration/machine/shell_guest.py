"""Linux in a machine of ours, with busybox and one shell at a named port of a console: for the lab, whose KVM can."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import initramfs
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.modules import Modules
from mamushka.machine.devices.virtio.console import Console, Port
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.executors.kvm.vcpu import prepare_to_kick
from tests.lab.kernel import Unavailable, default_cache, kernel

# Mounts, modules, then a shell at the port that is called "shell".
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read path; do insmod /modules/$path || echo "$path does not load"; done < /order
for port in /sys/class/virtio-ports/*; do
    if test "$(cat $port/name 2>/dev/null)" = shell; then
        exec 3<>/dev/${port##*/}  # once: a port is open for one program
        sh <&3 >&3 2>&1
    fi
done
echo "no shell"
poweroff -f
"""


class LinuxGuest:
    """A board, and the host's side of its shell."""

    def __init__(self, modules: Iterable[str], *, memory: int = 256 << 20) -> None:
        self.said: list[bytes] = []  # by the serial port
        self._from, shell_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        shell_in, self._to = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.keyboard, self.keys = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fds = (self._from, shell_out, shell_in, self._to, self.keyboard, self.keys)
        self.typed: list[bytes] = []  # what came out of hvc0
        self.board = Board(KvmExecutor(), ram(memory))
        self.board.console(self.said.append)
        self.console = Console((Port(self.keyboard, self.typed.append), Port(shell_in, shell_out, "shell")))
        self.board.add("console", self.console)
        self._modules = tuple(modules)
        self._count = 0

    def boot(self) -> None:
        try:
            found = kernel(default_cache())
        except Unavailable as error:
            pytest.skip(str(error))
        modules = Modules(found.modules)
        order = modules.order(("virtio_mmio", "virtio_console", *self._modules))
        busybox = shutil.which("busybox")
        if busybox is None:
            pytest.skip("no busybox: apt-get install busybox-static")
        with open(busybox, "rb") as file:
            members = [initramfs.program("bin/busybox", file.read()), initramfs.program("init", _INIT.encode())]
        members += [initramfs.Member(f"modules/{path}", content=modules.read(path)) for path in order]
        members.append(initramfs.Member("order", content="".join(f"{path}\n" for path in order).encode()))
        archive = initramfs.archive(members)
        entry = self.board.boot(found.image, command_line=command_line(), initramfs=[archive])
        self.board.machine.start(entry)

    def run(self, command: str, seconds: float = 60) -> str:
        """What a command of the guest's shell prints."""
        self._count += 1
        mark = f"@{self._count}@"
        os.write(self._to, f"{command}; echo '@'{self._count}'@'\n".encode())
        found, end = b"", time.monotonic() + seconds
        while f"\n{mark}\n".encode() not in b"\n" + found:
            assert time.monotonic() < end, (command, found, b"".join(self.said)[-2000:], self.board.machine.end)
            if select.select([self._from], [], [], 0.5)[0]:
                found += os.read(self._from, 1 << 16)
        return found.decode(errors="replace").replace("\r", "").rpartition(mark)[0].strip()

    def close(self) -> None:
        self.board.close()
        for fd in self._fds:
            os.close(fd)


def can_run_linux() -> str:
    """Why not, or nothing. In the lab the module must be loaded first."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        subprocess.run(["modprobe", "kvm-amd"], check=False, capture_output=True)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm cannot be opened"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return "" if " svm" in flags or " vmx" in flags else "this host's KVM is software that cannot run a whole Linux"


@contextmanager
def linux_guest(*modules: str, memory: int = 256 << 20) -> Iterator[LinuxGuest]:
    """A guest that was not booted yet: devices are added before."""
    prepare_to_kick()
    guest = LinuxGuest(modules, memory=memory)
    try:
        yield guest
    finally:
        guest.close()
