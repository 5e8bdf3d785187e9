"""Every mechanism of the KVM executor, by mini-guests."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from mamushka.errors import Conflict
from mamushka.machine.machine import OFF, PAUSED, REBOOT, STUCK
from tests.integration.machine.guests import START, TABLE, assemble, machine, needs_kvm, protected

pytestmark = needs_kvm


class Recorder:
    """Registers that write down what happens to them, and read as a counter."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return 0x1122334455667788 + len(self.reads)

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_accesses_reach_the_buses_with_their_sizes_and_answers_come_back() -> None:
    code = assemble("""
        mov dx, 0x600
        in eax, dx
        mov [0x4000], eax
        out dx, al
        mov ebx, 0xd0000000
        mov eax, [ebx + 8]
        mov [0x4004], eax
        mov word ptr [ebx + 2], 0x1234
        hlt
    """)
    with machine(code, interrupts=False) as made:
        port, place = Recorder(), Recorder()
        made.ports.attach(0x600, 4, port)
        made.bus.attach(0xD0000000, 0x1000, place)
        made.start(protected())
        end = made.wait(10)
        assert end is not None and end.kind == OFF
        assert port.reads == [(0, 4)] and place.reads == [(8, 4)]
        assert port.written == [(0, 1, 0x89)]
        assert place.written == [(2, 2, 0x1234)]
        assert bytes(made.memory.read(0x4000, 8)) == (0x55667789).to_bytes(4, "little") * 2
        assert made.exits[0] == {"Read": 2, "Write": 2, "Halted": 1}


def test_string_instructions_are_told_one_by_one() -> None:
    code = assemble("""
        mov dx, 0x600
        mov edi, 0x4000
        mov ecx, 3
        rep insw
        mov esi, 0x4000
        mov ecx, 3
        rep outsw
        hlt
    """)
    with machine(code, interrupts=False) as made:
        port = Recorder()
        made.ports.attach(0x600, 4, port)
        made.start(protected())
        assert made.wait(10) is not None
        assert port.reads == [(0, 2)] * 3
        assert [value for _, _, value in port.written] == [0x7789, 0x778A, 0x778B]


def test_nobody_reads_as_ones() -> None:
    with machine(assemble("mov eax, [0xd0000000]\n mov [0x4000], eax\n hlt"), interrupts=False) as made:
        made.start(protected())
        made.wait(10)
        assert bytes(made.memory.read(0x4000, 4)) == b"\xff" * 4


def test_a_triple_fault_is_a_reboot() -> None:
    with machine(assemble("ud2")) as made:
        made.start(protected())
        end = made.wait(10)
        assert end is not None and end.kind == REBOOT


def test_a_machine_that_spins_holds_still_and_goes_on() -> None:
    code = assemble("again: inc dword ptr [0x4000]\n jmp again")
    with machine(code) as made:
        count = made.memory.read(0x4000, 4).cast("I")
        made.start(protected())
        while not count[0]:
            time.sleep(0.001)
        made.pause()
        assert made.state == "paused"
        before = count[0]
        time.sleep(0.02)
        assert count[0] == before
        with pytest.raises(Conflict, match="cannot pause a machine that is paused"):
            made.pause()
        made.resume()
        deadline = time.monotonic() + 10
        while count[0] == before:
            assert time.monotonic() < deadline
        count.release()


def test_a_halted_machine_holds_still_ends_and_leaves_no_thread() -> None:
    before = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with machine(assemble("again: hlt\n jmp again"), vcpus=2) as made:
            made.start(protected())
            made.pause()
            made.resume()
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


# The handler returns without iret, which a KVM in software need not know in 32-bit mode.
# An interrupt table with one gate, 0x40; LAPIC on; the I/O APIC's pin 5 sends vector 0x40 to processor 0.
INTERRUPTS = """
    lgdt [table]
    mov eax, offset handler
    mov word ptr [0x2000 + 0x40 * 8], ax
    mov word ptr [0x2000 + 0x40 * 8 + 2], 0x10
    mov word ptr [0x2000 + 0x40 * 8 + 4], 0x8e00
    shr eax, 16
    mov word ptr [0x2000 + 0x40 * 8 + 6], ax
    lidt [interrupts]
    mov dword ptr [0xfee000f0], 0x1ff
    mov dword ptr [0xfec00000], 0x1a
    mov dword ptr [0xfec00010], 0x40
    mov dword ptr [0xfec00000], 0x1b
    mov dword ptr [0xfec00010], 0
    mov dx, 0x600
    out dx, al
    sti
sleep:
    hlt
    jmp sleep
handler:
    inc dword ptr [0x4000]
    mov dword ptr [0xd0000050], 7
    mov dword ptr [0xfee000b0], 0
    add esp, 12
    sti
    jmp sleep
table: .word 31
    .long 0x3000
interrupts: .word 0x7ff
    .long 0x2000
"""


def test_a_line_reaches_a_halted_processor_and_a_doorbell_rings_without_an_exit() -> None:
    with machine(assemble(INTERRUPTS)) as made:
        made.memory.write(0x3000, TABLE)
        ready = threading.Event()

        class Ready:
            def read(self, offset: int, size: int) -> int:
                return 0

            def write(self, offset: int, size: int, value: int) -> None:
                ready.set()

        made.ports.attach(0x600, 1, Ready())
        bell = os.eventfd(0, os.EFD_CLOEXEC)
        line = made.executor.line(5)
        assert made.executor.doorbell(0xD0000050, 4, 7, bell)
        made.start(protected())
        assert ready.wait(10)
        time.sleep(0.05)
        before = dict(made.exits[0])
        for _ in range(100):
            line.fire()
            assert select.select([bell], [], [], 10)[0], made.end
            assert os.eventfd_read(bell) == 1
        assert made.memory.read(0x4000, 4).cast("I")[0] == 100
        assert made.exits[0] == before, "an exit reached Python"
        os.close(bell)


def test_what_cannot_be_emulated_says_where_it_stands() -> None:
    """Executing from where no memory is: every KVM gives up there, most with an internal error."""
    with machine(assemble("mov eax, 0xd0000000\n jmp eax")) as made:
        made.start(protected())
        end = made.wait(10)
        assert end is not None and end.kind in (STUCK, REBOOT)
        if end.kind == STUCK:
            assert "0xd0000000" in end.cause


def test_state_goes_on_in_another_machine() -> None:
    code = assemble("again: inc dword ptr [0x4000]\n mov ecx, 0x5eed\n jmp again")
    with machine(code) as first:
        first.start(protected())
        while not first.memory.read(0x4000, 4).cast("I")[0]:
            time.sleep(0.001)
        first.pause()
        vcpu, whole = first.vcpus[0].save(), first.executor.save()
        content = bytes(first.memory.read(0, 1 << 20))
    with machine(b"") as second:
        second.memory.write(0, content)
        second.vcpus[0].restore(vcpu)
        second.executor.restore(whole)
        assert second.vcpus[0].registers()["rcx"] == 0x5EED
        assert START <= second.vcpus[0].registers()["rip"] < START + len(code)
        count = second.memory.read(0x4000, 4).cast("I")
        before = count[0]
        second.start()
        deadline = time.monotonic() + 10
        while count[0] == before:
            assert time.monotonic() < deadline
        count.release()


@pytest.mark.parametrize("access", ["in al, dx", "mov eax, [ebx]", "mov edi, 0x4000\n mov ecx, 3\n rep insb"])
def test_a_machine_that_holds_still_has_nothing_half_done(access: str) -> None:
    """Stopped in the very moment in which an access is answered, the answer is in the registers or in memory."""

    class Holding(Recorder):
        def read(self, offset: int, size: int) -> int:
            made.hold()
            return super().read(offset, size)

    code = assemble(f"xor eax, eax\n mov dx, 0x600\n mov ebx, 0xd0000000\n {access}\n hlt")
    with machine(code, interrupts=False) as made:
        made.ports.attach(0x600, 4, Holding())
        made.bus.attach(0xD0000000, 0x1000, Holding())
        made.start(protected())
        end = time.monotonic() + 10
        while made.state != PAUSED and time.monotonic() < end:
            time.sleep(0.001)
        made.settle()
        registers = made.vcpus[0].registers()
        if "rep" in access:
            assert bytes(made.memory.read(0x4000, 3)) == bytes((0x89, 0x8A, 0x8B)) and registers["rcx"] == 0
        else:
            assert registers["rax"] & 0xFF == 0x89
        made.resume()
        assert made.wait(10) is not None


def test_signals_do_not_keep_a_machine_from_being_made() -> None:
    """A child that ends, a window that changes its size: one signal in fifty met KVM_CREATE_VM in the middle."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(300):
            with machine(assemble("hlt"), interrupts=False) as made:
                made.start(protected())
                end = made.wait(10)
                assert end is not None and end.kind == OFF
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
