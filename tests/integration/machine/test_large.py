"""Machines at their edges: many processors, and memory on both sides of the hole below 4 GiB."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import layout, segments
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import OFF, PAUSED, Machine
from mamushka.machine.memory import Memory
from mamushka.machine.vcpu import Entry
from tests.integration.machine.guests import START, assemble, machine, needs_kvm, protected
from tests.integration.machine.linux_guest import linux, usable

GIB = layout.GIB
PROCESSORS = 32

# The first one wakes all others by INIT and SIPI to all but itself (Intel SDM volume 3, 11.6.1), and spins for good.
_WAKING = """
    mov edi, 0xfee00000
    mov dword ptr [edi + 0xf0], 0x1ff
    mov dword ptr [edi + 0x300], 0xc4500
    mov dword ptr [edi + 0x300], 0xc4602
again:
    pause
    jmp again
"""
# In real mode at 0x2000: count, and sleep for good.
_WOKEN = "xor ax, ax\n mov ds, ax\n lock inc word ptr [0x3000]\n cli\n asleep: hlt\n jmp asleep"


@needs_kvm
def test_many_processors_run_hold_still_asleep_and_end() -> None:
    with machine(assemble(_WAKING), vcpus=PROCESSORS) as made:
        made.memory.write(0x2000, assemble(_WOKEN, 16))
        made.start(protected())
        assert _counted(made.memory, 0x3000, PROCESSORS - 1)
        begin = time.monotonic()
        made.pause()
        assert made.state == PAUSED
        assert time.monotonic() - begin < 10
        states = [vcpu.save() for vcpu in made.vcpus]
        assert len(states) == PROCESSORS
        made.resume()
        ending = [threading.Thread(target=made.power, args=(False,)) for _ in range(8)]
        for thread in ending:
            thread.start()
        end = made.wait(30)
        for thread in ending:
            thread.join(5)
        assert end is not None
        assert end.kind == OFF


def _counted(memory: Memory, gpa: int, wanted: int) -> bool:
    for _ in range(3000):
        if struct.unpack("<H", memory.read(gpa, 2))[0] >= wanted:
            return True
        time.sleep(0.01)
    return False


def identity(memory: Memory, size: int) -> int:
    """Tables that map ``size`` bytes to themselves in pages of 2 MiB, at 0x9000; their first address."""
    top, second, third = 0x9000, 0xA000, 0xB000
    count = size // GIB
    memory.write(top, struct.pack("<Q", second | 3))
    memory.write(second, struct.pack(f"<{count}Q", *(third + 4096 * number | 3 for number in range(count))))
    memory.write(third, struct.pack(f"<{512 * count}Q", *range(0x83, size, 2 * layout.MIB)))
    return top


@pytest.fixture
def tall() -> Iterator[Machine]:
    """6 GiB: three below the hole, three from 4 GiB on. Nothing of it is taken before it is touched."""
    board = Board(KvmExecutor(interrupts=False), ram(6 * GIB))
    yield board.machine
    board.close()


@needs_kvm
def test_memory_goes_on_behind_the_hole(tall: Machine) -> None:
    """Its last byte below the hole, its first behind it, and its last; the hole itself is nobody's."""
    places = (3 * GIB - 8, 4 * GIB, 7 * GIB - 8)
    writes = "".join(f"mov rax, {place:#x}\n mov qword ptr [rax], {number}\n" for number, place in enumerate(places, 7))
    source = f"{writes} mov rax, {3 * GIB:#x}\n mov rbx, [rax]\n mov [0x5000], rbx\n mov rax, {7 * GIB:#x}\n"
    code = assemble(f"{source} mov rbx, [rax]\n mov [0x5008], rbx\n hlt", 64)
    tall.memory.write(START, code)
    cr3 = identity(tall.memory, 8 * GIB)
    gdt = segments.write_table(tall.memory, segments.LONG)
    tall.start(Entry("long", {"rip": START, "rsp": 0x8000, "rflags": 2}, cr3=cr3, gdt=gdt, table=segments.LONG))
    end = tall.wait(30)
    assert end is not None
    assert (end.kind, end.cause) == (OFF, "halted")
    assert [struct.unpack("<Q", tall.memory.read(place, 8))[0] for place in places] == [7, 8, 9]
    assert bytes(tall.memory.read(0x5000, 16)) == b"\xff" * 16
    assert tall.memory.size == 6 * GIB


LOOK = """
mkdir -p /proc
mount -t proc proc /proc
grep "System RAM" /proc/iomem
grep MemTotal /proc/meminfo
echo processors $(nproc)
echo the end
"""


@pytest.mark.lab
@pytest.mark.parametrize("size", (3 * GIB, 4 * GIB, 6 * GIB))
def test_linux_finds_all_of_it(size: int) -> None:
    if not usable():
        pytest.skip("no KVM here that runs a stock kernel: make lab")
    with linux(LOOK, vcpus=4, memory=size) as guest:
        guest.start()
        said = guest.until("the end", 120)
    total = int(said.partition("MemTotal:")[2].split()[0]) << 10
    assert 0.95 * size < total < size
    assert "processors 4" in said
    assert f"-{layout.HOLE - 1:08x} : System RAM" in said
    assert (f"100000000-{layout.HOLE_END + size - layout.HOLE - 1:x} : System RAM" in said) == (size > 3 * GIB)
