"""The virtio transport, driven by a mini-guest's own instructions through KVM: doorbells, interrupts, the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.mmio import Transport
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.machine import OFF, Machine
from tests.integration.machine.guests import TABLE, assemble, machine, needs_kvm, protected

pytestmark = needs_kvm

BASE = 0xD0000000
ROUNDS = 200
DESCRIPTORS, AVAILABLE, USED, BUFFER = 0x10000, 0x11000, 0x12000, 0x14000


def writes(*pairs: tuple[int, int]) -> str:
    """32-bit writes, one after another."""
    return "\n".join(f"mov dword ptr [{address:#x}], {value:#x}" for address, value in pairs)


# As Linux does it: features, one queue of 16 at the addresses above, one buffer of 8 bytes to be written into.
SET_UP = writes(
    *((BASE + mmio.STATUS, status) for status in (0, 1, 3)),
    (BASE + mmio.DRIVER_FEATURES_SEL, 1),
    (BASE + mmio.DRIVER_FEATURES, 1),
    (BASE + mmio.STATUS, 0xB),
    (BASE + mmio.QUEUE_SEL, 0),
    (BASE + mmio.QUEUE_NUM, 16),
    (BASE + mmio.QUEUE_DESC, DESCRIPTORS),
    (BASE + mmio.QUEUE_DRIVER, AVAILABLE),
    (BASE + mmio.QUEUE_DEVICE, USED),
    (BASE + mmio.QUEUE_READY, 1),
    (BASE + mmio.STATUS, 0xF),
    (DESCRIPTORS, BUFFER),
    (DESCRIPTORS + 8, 8),
    (DESCRIPTORS + 12, 2),
)

# Interrupts as in test_kvm: vector 0x40 from pin 5. Then ROUNDS requests, each after the one before was answered.
GUEST = f"""
    lgdt [table]
    mov eax, offset handler
    mov word ptr [0x2000 + 0x40 * 8], ax
    mov word ptr [0x2000 + 0x40 * 8 + 2], 0x10
    mov word ptr [0x2000 + 0x40 * 8 + 4], 0x8e00
    shr eax, 16
    mov word ptr [0x2000 + 0x40 * 8 + 6], ax
    lidt [interrupts]
    {writes((0xFEE000F0, 0x1FF), (0xFEC00000, 0x1A), (0xFEC00010, 0x40), (0xFEC00000, 0x1B), (0xFEC00010, 0))}
    {SET_UP}
    mov ebx, {ROUNDS}
    mov dx, 0x600
    out dx, al
next:
    inc word ptr [{AVAILABLE + 2:#x}]
    mov dword ptr [{BASE + mmio.QUEUE_NOTIFY:#x}], 0
sleep:
    sti
    hlt
    jmp sleep
look:
    mov ax, [{USED + 2:#x}]
    cmp ax, [{AVAILABLE + 2:#x}]
    jne sleep
    dec ebx
    jnz next
    mov dx, 0x601
    out dx, al
    cli
    hlt
handler:
    inc dword ptr [0x4000]
    mov eax, [{BASE + mmio.INTERRUPT_STATUS:#x}]
    or [0x4004], eax
    mov [{BASE + mmio.INTERRUPT_ACK:#x}], eax
    mov dword ptr [0xfee000b0], 0
    add esp, 12
    jmp look
table: .word 31
    .long 0x3000
interrupts: .word 0x7ff
    .long 0x2000
"""


class Marks:
    """Keeps the count of exits at two moments of the guest's choice; after the second it ends."""

    def __init__(self, made: Machine) -> None:
        self._machine = made
        self.counts: list[dict[str, int]] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.counts.append(dict(self._machine.exits[0]))
        if offset == 1:
            self._machine.power(False)


@contextmanager
def driven(*, spared: bool) -> Iterator[tuple[Machine, Marks]]:
    """A machine with an entropy device that its guest drives; ``spared`` with bells and page, else by exits."""
    with ExitStack() as closing:
        made = closing.enter_context(machine(assemble(GUEST)))
        made.memory.write(0x3000, TABLE)
        transport = Transport(Rng(), made.memory, made.executor.line(5), made.loop)
        if spared:
            transport.attach(BASE, made.bus, made.executor)
        else:
            made.bus.attach(BASE, transport.length, transport)
        marks = Marks(made)
        made.ports.attach(0x600, 2, marks)
        yield made, marks
    transport.close()


@pytest.mark.parametrize("spared", [True, False], ids=["bells-and-page", "exits"])
def test_a_guest_asks_and_is_answered(spared: bool) -> None:
    with driven(spared=spared) as (made, marks):
        made.start(protected())
        end = made.wait(30)
        assert end is not None, made.vcpus[0].registers()
        assert end.kind == OFF, end
        before, after = marks.counts
        exits = sum(after.values()) - sum(before.values()) - 1  # the mark itself
        interrupts, status = made.memory.read(0x4000, 8).cast("I")
        assert interrupts == ROUNDS
        if spared:
            assert exits == 0, "an exit reached Python"
        else:
            assert exits == 3 * ROUNDS, "a doorbell, a status and an acknowledgement for each"
        assert status == mmio.USED_BUFFER
        assert any(made.memory.read(BUFFER, 8))
