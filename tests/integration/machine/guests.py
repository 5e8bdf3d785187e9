"""Mini-guests: a few instructions of machine code, assembled by the tests, that begin at 0x1000 in any mode."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mamushka.machine.executors.kvm import DEVICE, KvmExecutor
from mamushka.machine.executors.kvm.probe import probe
from mamushka.machine.machine import Machine
from mamushka.machine.memory import Memory, Region
from mamushka.machine.vcpu import Entry

START = 0x1000
SIZE = 1 << 20

needs_kvm = pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"{DEVICE} cannot be opened")


@functools.cache
def assemble(source: str, bits: int = 32) -> bytes:
    """The instructions of a GNU assembler source (Intel syntax), as they stand at START."""
    if shutil.which("as") is None:
        pytest.skip("no assembler: apt-get install binutils")
    with tempfile.TemporaryDirectory() as scratch:
        text = f".intel_syntax noprefix\n.code{bits}\n{source}\n"
        subprocess.run(["as", "-o", f"{scratch}/o", "-"], input=text.encode(), check=True)
        subprocess.run(
            ["ld", "-N", f"-Ttext={START:#x}", "-e", f"{START:#x}", "--oformat=binary", "-o", f"{scratch}/b",
             f"{scratch}/o"], check=True,
        )  # fmt: skip
        with open(f"{scratch}/b", "rb") as file:
            return file.read()


@contextmanager
def machine(code: bytes, *, interrupts: bool = True, vcpus: int = 1, size: int = SIZE) -> Iterator[Machine]:
    """A machine with ``code`` at START in ``size`` bytes of private memory; not started."""
    memory = Memory((Region(0, size),))
    memory.write(START, code)
    made = Machine(KvmExecutor(interrupts=interrupts), memory, vcpus=vcpus)
    try:
        yield made
    finally:
        made.close()


# Flat 32-bit segments: null, null, code (0x10), data (0x18).
TABLE = b"".join(number.to_bytes(8, "little") for number in (0, 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF))


def protected(**registers: int) -> Entry:
    """Begin at START in 32-bit mode with a stack."""
    return Entry("protected", {"rip": START, "rsp": 0x8000, **registers})


def emulated() -> bool:
    """Whether the processor is QEMU's own (TCG): a nested guest's debug registers and int3 do not stop it there."""
    with open("/proc/cpuinfo") as file:
        return "QEMU TCG" in file.read(8192)


def in_hardware() -> None:
    """Skip where guests in kernel mode are interpreted or emulated, and neither accesses nor int3 stop them."""
    if emulated() or not probe().usable:
        pytest.skip("needs a processor whose own virtualization stops for debug registers and int3")
