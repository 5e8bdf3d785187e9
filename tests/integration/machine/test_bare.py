"""Bare-metal programs: multiboot kernels find under our monitor what they find under QEMU, and end as they do there."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from mamushka.machine.boot import load
from mamushka.machine.devices import debug_exit, fwcfg, testdev
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.executors.kvm.vcpu import prepare_to_kick
from mamushka.machine.machine import OFF, End, Machine
from mamushka.machine.memory import Memory, Region
from tests.integration.machine.guests import needs_kvm

MIB = 1 << 20
COMMAND_LINE, MODULE = b"one two=3", b"the module's bytes"

# Tells through port 0xe9: the command line behind its first word, the module, the processors and bytes of
# RAM by fw_cfg; then ends with 0x15.
PROGRAM = """
    .long 0x1badb002, 3, -(0x1badb002 + 3)
    .global start
start:
    mov esp, offset stack
    mov esi, ebx
    cmp eax, 0x2badb002
    jne wrong
    mov eax, [esi]
    and eax, 0x4d
    cmp eax, 0x4d
    jne wrong
    cmp dword ptr [zeros], 0
    jne wrong
    mov ebx, [esi + 16]
argument:
    mov al, [ebx]
    inc ebx
    cmp al, 0x20
    jne argument
letter:
    mov al, [ebx]
    inc ebx
    out 0xe9, al
    test al, al
    jnz letter
    cmp dword ptr [esi + 20], 1
    jne wrong
    mov ecx, [esi + 24]
    mov ebx, [ecx]
    mov ecx, [ecx + 4]
content:
    mov al, [ebx]
    out 0xe9, al
    inc ebx
    cmp ebx, ecx
    jne content
    mov dx, 0x510
    mov ax, 5
    mov ecx, 2
    call tell
    mov ax, 3
    mov ecx, 8
    call tell
    mov ax, 0
    mov ecx, 6
    call tell
    mov eax, 0x15
    out 0xf4, eax
    hlt
wrong:
    mov eax, 0x66
    out 0xf4, eax
    hlt
tell:
    out dx, ax
    inc dx
next:
    in al, dx
    out 0xe9, al
    dec ecx
    jnz next
    dec dx
    ret
    .bss
zeros: .space 65536
stack: .long 0
"""


@functools.cache
def program(source: str = PROGRAM) -> bytes:
    """A 32-bit ELF file at 1 MiB."""
    if shutil.which("as") is None:
        pytest.skip("no assembler: apt-get install binutils")
    with tempfile.TemporaryDirectory() as scratch:
        text = f".intel_syntax noprefix\n.code32\n.text\n{source}\n"
        subprocess.run(["as", "--32", "-o", f"{scratch}/o", "-"], input=text.encode(), check=True)
        linked = [
            "ld",
            "-n",
            "--no-warn-rwx-segments",
            "-m",
            "elf_i386",
            "-Ttext=0x100000",
            "-e",
            "start",
            "-o",
            f"{scratch}/b",
            f"{scratch}/o",
        ]
        subprocess.run(linked, check=True)
        return Path(f"{scratch}/b").read_bytes()


class Told:
    """A port that keeps every byte written to it."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def read(self, offset: int, size: int) -> int:
        return 0xE9

    def write(self, offset: int, size: int, value: int) -> None:
        self.bytes.append(value & 0xFF)


def ours(image: bytes) -> tuple[bytes, End]:
    """What it tells, and how it ends, under our monitor."""
    prepare_to_kick()
    memory = Memory((Region(0, 16 * MIB),))
    entry = load(memory, image, command_line=COMMAND_LINE, initramfs=[MODULE])
    machine = Machine(KvmExecutor(), memory, vcpus=2)
    try:
        told = Told()
        machine.ports.attach(0xE9, 1, told)
        machine.ports.attach(fwcfg.PORT, fwcfg.LENGTH, fwcfg.FwCfg(ram=memory.size, processors=2))
        ended = debug_exit.DebugExit(lambda status: machine.finish(End(OFF, "debug exit", status)))
        machine.ports.attach(debug_exit.PORT, debug_exit.LENGTH, ended)
        bochs = debug_exit.BochsShutdown(lambda status: machine.finish(End(OFF, "shutdown", status)))
        machine.ports.attach(debug_exit.BOCHS_PORT, 1, bochs)
        lines = {line: machine.executor.line(line) for line in range(testdev.LINES)}
        drive = testdev.Lines(lambda line, high: lines[line].fire() if high else None)
        machine.ports.attach(testdev.LINES_PORT, testdev.LINES, drive)
        machine.start(entry)
        end = machine.wait(20)
        assert end is not None, "it did not end"
        return bytes(told.bytes), end
    finally:
        machine.close()


@needs_kvm
def test_a_multiboot_program_finds_what_it_was_given() -> None:
    told, end = ours(program())
    assert told == COMMAND_LINE + b"\0" + MODULE + b"\2\0" + (16 * MIB).to_bytes(8, "little") + b"QEMU\0\0"
    assert (end.kind, end.status) == (OFF, 0x2B)


@needs_kvm
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86")
def test_and_the_same_as_under_qemu(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(program())
    (tmp_path / "module").write_bytes(MODULE)
    ran = subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg", "-smp", "2", "-m", "16", "-nodefaults", "-display", "none",
         "-debugcon", f"file:{tmp_path}/told", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
         "-kernel", "kernel", "-append", COMMAND_LINE.decode(), "-initrd", "module"],
        cwd=tmp_path, check=False, timeout=30,
    )  # fmt: skip
    told, end = ours(program())
    assert (tmp_path / "told").read_bytes() == told
    assert ran.returncode == end.status


@needs_kvm
def test_bochs_word_ends_it() -> None:
    letters = "\n".join(f"mov al, {letter}\n out dx, al" for letter in b"Shutdown")
    source = f".long 0x1badb002, 3, -(0x1badb002 + 3)\n.global start\nstart: mov dx, 0x8900\n{letters}\nhlt"
    _, end = ours(program(source))
    assert (end.kind, end.cause, end.status) == (OFF, "shutdown", 0)


# Interrupt table, LAPIC on, the I/O APIC's pin 7 to vector 0x40; then the test device drives line 7.
LINES = """
    .long 0x1badb002, 3, -(0x1badb002 + 3)
    .global start
start:
    mov esp, offset stack
    mov eax, offset handler
    mov word ptr [table + 0x40 * 8], ax
    mov word ptr [table + 0x40 * 8 + 2], 0x10
    mov word ptr [table + 0x40 * 8 + 4], 0x8e00
    shr eax, 16
    mov word ptr [table + 0x40 * 8 + 6], ax
    lidt [pointer]
    mov dword ptr [0xfee000f0], 0x1ff
    mov dword ptr [0xfec00000], 0x1e
    mov dword ptr [0xfec00010], 0x40
    mov dword ptr [0xfec00000], 0x1f
    mov dword ptr [0xfec00010], 0
    sti
    mov dx, 0x2007
    mov al, 1
    out dx, al
sleep:
    hlt
    jmp sleep
handler:
    mov eax, 7
    out 0xf4, eax
    jmp sleep
    .data
pointer: .word 0x7ff
    .long table
    .bss
table: .space 2048
    .space 4096
stack: .long 0
"""


@needs_kvm
def test_the_test_device_drives_interrupt_lines() -> None:
    _, end = ours(program(LINES))
    assert (end.kind, end.status) == (OFF, 15)
