"""A stock kernel as a guest: a script of busybox' shell is its first process, what the console says is kept."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import initramfs, kernels
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.executors.kvm import DEVICE, KvmExecutor, probe
from mamushka.machine.vcpu import Entry
from tests.lab.kernel import Unavailable, default_cache, kernel


def usable() -> bool:
    """Whether this host's KVM runs a stock kernel."""
    subprocess.run(["/sbin/modprobe", "kvm-amd"], check=False, stderr=subprocess.DEVNULL)  # in the lab
    return os.access(DEVICE, os.R_OK | os.W_OK) and probe.probe().usable


def stock() -> kernels.Kernel:
    """The lab's kernel and its modules; skips where it is not there."""
    try:
        return kernels.at(os.path.dirname(os.path.dirname(kernel(default_cache()).image)))
    except Unavailable as error:
        pytest.skip(str(error))


class Guest:
    """The board, where it begins, and its console."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.entry = Entry("", {})
        self._said, self._lock = bytearray(), threading.Lock()
        board.console(self._listen)

    def _listen(self, content: bytes) -> None:
        with self._lock:
            self._said += content

    @property
    def said(self) -> str:
        """All so far."""
        with self._lock:
            return self._said.decode(errors="replace")

    def until(self, words: str, seconds: float = 120) -> str:
        """Wait for these words of its console."""
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end and self.board.machine.end is None, self.said[-3000:]
            time.sleep(0.02)
        return self.said


@contextmanager
def linux(
    script: str, devices: Mapping[str, Device], modules: Sequence[str] = (), programs: Mapping[str, Path] | None = None,
    *, vcpus: int = 1, words: Sequence[str] = (), memory: int = 256 << 20,
) -> Iterator[Guest]:  # fmt: skip
    """A guest, plugged together and not started: ``guest.board.machine.start(guest.entry)``."""
    kernel = stock()
    files = Modules(kernel.modules)
    order = files.order(("virtio_mmio", *modules))
    insert = "".join(f"insmod /modules/{module_name(path)}.ko\n" for path in order)
    text = f"#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n{insert}{script}\npoweroff -f\n"
    archives = [
        initramfs.archive(
            [
                program("bin/busybox", Path("/bin/busybox").read_bytes()),
                program("init", text.encode()),
                *(program(f"bin/{name}", path.read_bytes()) for name, path in (programs or {}).items()),
            ]
        ),
        initramfs.archive(Member(f"modules/{module_name(path)}.ko", content=files.read(path)) for path in order),
    ]
    board = Board(KvmExecutor(), ram(memory), vcpus=vcpus)
    try:
        guest = Guest(board)
        for name, device in devices.items():
            board.add(name, device)
        line = command_line(["mitigations=off", *words])
        guest.entry = board.boot(kernel.image, command_line=line, initramfs=archives)
        yield guest
    finally:
        board.close()
