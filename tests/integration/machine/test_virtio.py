"""The virtio transport, driven by a mini-guest's own instructions through KVM: doorbells, interrupts, the page."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.mmio import Transport
from mamushka.machine.devices.virtio.queue import EVENT_IDX, Queue
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.loop import Loop
from mamushka.machine.machine import OFF, Machine
from tests.integration.machine.guests import TABLE, assemble, machine, needs_kvm, protected

pytestmark = needs_kvm

BASE = 0xD0000000
ROUNDS = 200
DESCRIPTORS, AVAILABLE, USED, BUFFER = 0x10000, 0x11000, 0x12000, 0x14000


def writes(*pairs: tuple[int, int | str]) -> str:
    """32-bit writes, one after another."""
    return "\n".join(f"mov dword ptr [{address:#x}], {value}" for address, value in pairs)


EVENTS = 1 << EVENT_IDX

# As Linux does it: features, one queue of 16 at the addresses above, one buffer of 8 bytes to be written into.
SET_UP = writes(
    *((BASE + mmio.STATUS, status) for status in (0, 1, 3)),
    (BASE + mmio.DRIVER_FEATURES_SEL, 0),
    (BASE + mmio.DRIVER_FEATURES, "FEATURES"),
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

# Interrupts as in test_kvm: vector 0x40 from pin 5. BODY asks ROUNDS times; the handler goes to its label "look".
FRAME = f"""
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
    mov ebx, ROUNDS
    mov dx, 0x600
    out dx, al
    BODY
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

# Rings, sleeps, and looks when it is woken, each time.
PATIENT = f"""
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
"""

# With EVENT_IDX: rings where the device asked for it, looks for a while, then asks to be woken, looks again, sleeps.
# The counts of bells and of sleeps are at 0x4008 and 0x400c.
EAGER = f"""
next:
    inc word ptr [{AVAILABLE + 2:#x}]
    lock or dword ptr [esp - 4], 0
    mov ax, [{AVAILABLE + 2:#x}]
    dec ax
    cmp ax, [{USED + 4 + 8 * 16:#x}]
    jne quiet
    mov dword ptr [{BASE + mmio.QUEUE_NOTIFY:#x}], 0
    inc dword ptr [0x4008]
quiet:
    mov ecx, PATIENCE
poll:
    mov ax, [{USED + 2:#x}]
    cmp ax, [{AVAILABLE + 2:#x}]
    je served
    dec ecx
    jnz poll
    mov ax, [{AVAILABLE + 2:#x}]
    dec ax
    mov [{AVAILABLE + 4 + 2 * 16:#x}], ax
    lock or dword ptr [esp - 4], 0
look:
    mov ax, [{USED + 2:#x}]
    cmp ax, [{AVAILABLE + 2:#x}]
    je served
    inc dword ptr [0x400c]
    sti
    hlt
    cli
    jmp look
served:
    cli
    dec ebx
    jnz next
"""


def program(body: str, *, features: int = 0, rounds: int = ROUNDS, patience: int = 1) -> bytes:
    """A guest's code."""
    words = {"BODY": body, "FEATURES": features, "ROUNDS": rounds, "PATIENCE": patience}
    source = FRAME
    for word, value in words.items():
        source = source.replace(word, str(value))
    return assemble(source)


class Hesitant(Rng):
    """Stops to think between seeing that there is nothing and asking to be rung: then the next request comes."""

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        super().start(queues, features, loop)
        look, dice = queues[0]._waiting, random.Random(1)

        def hesitate() -> int:
            found = look()
            end = time.perf_counter() + (dice.random() * 60e-6 if found == 0 else 0)
            while time.perf_counter() < end:
                pass
            return found

        queues[0]._waiting = hesitate  # type: ignore[method-assign]


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
def driven(code: bytes, *, device: Rng | None = None, spared: bool = True) -> Iterator[tuple[Machine, Marks]]:
    """A machine with an entropy device that its guest drives; ``spared`` with bells and page, else by exits."""
    with ExitStack() as closing:
        made = closing.enter_context(machine(code))
        made.memory.write(0x3000, TABLE)
        transport = Transport(device or Rng(), made.memory, made.executor.line(5), made.loop)
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
    with driven(program(PATIENT), spared=spared) as (made, marks):
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


@pytest.mark.parametrize("patience", [1, 20, 100])
def test_no_bell_and_no_interrupt_is_lost_where_both_sides_ask_for_few(patience: int) -> None:
    """The guest looks while the device is about to ask to be rung: who did not look again would sleep for ever."""
    rounds = 3000
    code = program(EAGER, features=EVENTS, rounds=rounds, patience=patience)
    with driven(code, device=Hesitant()) as (made, _marks):
        made.start(protected())
        end = made.wait(20)
        assert end is not None, (made.vcpus[0].registers(), bytes(made.memory.read(0x4000, 16)))
        assert end.kind == OFF, end
        assert made.memory.read(USED + 2, 2).cast("H")[0] == rounds
        interrupts, _, bells, sleeps = made.memory.read(0x4000, 16).cast("I")
        print(f"patience {patience}: {rounds} rounds, {bells} bells, {sleeps} sleeps, {interrupts} interrupts")
        assert bells <= rounds and interrupts <= rounds
