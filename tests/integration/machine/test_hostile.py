"""Guests that mean harm, by the hundred: whatever one does ends itself at worst, with the cause, and leaves nothing.

The dice are seeded: a failure names its seed, and ``HOSTILE_SEEDS=7,8`` in the environment throws it again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import layout
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.balloon import Balloon
from mamushka.machine.devices.virtio.block import Block
from mamushka.machine.devices.virtio.console import Console, Port
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.net import Net
from mamushka.machine.devices.virtio.net import device as cards
from mamushka.machine.devices.virtio.queue import INDIRECT, NEXT, WRITE
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import FAULT, OFF, REBOOT, STUCK, End
from mamushka.machine.memory import Memory
from mamushka.storage.block import open_disk
from tests.integration.machine.guests import START, assemble, needs_kvm, protected

pytestmark = needs_kvm

MIB = 1 << 20
RAM = 2 * MIB
HERE = os.environ.get("HOSTILE_SEEDS", "")
SEEDS = [int(seed) for seed in HERE.split(",")] if HERE else list(range(100))
RINGS = 0x100000  # where the broken ones lie
# Long enough for what a few dozen instructions do; most guests end by themselves.
PATIENCE = 0.05


@contextmanager
def board(vcpus: int = 1) -> Iterator[Board]:
    """A machine with one of each device."""
    made = Board(KvmExecutor(), ram(RAM), vcpus=vcpus)
    try:
        made.console(lambda _: None)
        for name, device in devices(made.machine.memory).items():
            made.add(name, device)
        yield made
    finally:
        made.close()


def devices(memory: Memory) -> dict[str, Device]:
    """All that need nothing of the host's but descriptors."""
    card, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    wire.close()
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(MIB)
        disk = open_disk(file.name, "raw", writable=True)
    return {
        "rng": Rng(),
        "console": Console((Port(), Port(sink=lambda _: None, name="told"))),
        "balloon": Balloon(memory),
        "block": Block(disk),
        "net": Net(card.detach(), bytes.fromhex("020000000001")),
        "vsock": Vsock(3),
    }


def run(code: bytes, seconds: float = PATIENCE, fill: bytes = b"") -> End | None:
    """How a machine with this program ends by itself; None where it does not."""
    with board() as made:
        made.machine.memory.write(START, code)
        if fill:
            made.machine.memory.write(RINGS, fill)
        made.machine.start(protected())
        return made.machine.wait(seconds)


def run_all(programs: list[tuple[bytes, bytes]], seconds: float = PATIENCE) -> list[End | None]:
    """``run`` for each (code, fill), eight at once: whoever makes a machine mostly waits for the kernel's readers."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda program: run(program[0], seconds, program[1]), programs))


class Host:
    """What of this process a machine may not leave behind."""

    def __init__(self) -> None:
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.threads = threading.active_count()
        with open("/proc/self/maps") as file:
            self.mappings = sum("mamushka" in line or "kvm" in line for line in file)

    def beyond(self, before: Host) -> dict[str, int]:
        """What there is more of; less means that what others had left has ended meanwhile."""
        return {what: more for what, count in vars(self).items() if (more := count - vars(before)[what]) > 0}

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        return str(vars(self))

    __hash__ = None  # type: ignore[assignment]


def rested(patience: float = 10.0) -> Host:
    """A look when nothing ends any more: the same for a tenth of a second."""
    gc.collect()
    found, end, since = Host(), time.monotonic() + patience, time.monotonic()
    while time.monotonic() < min(end, since + 0.1):
        time.sleep(0.02)
        if (now := Host()) != found:
            found, since = now, time.monotonic()
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither descriptors nor threads nor memory; once everything that is made but once has been."""
    monkeypatch.setattr(cards, "TUNSETOFFLOAD", lambda fd, flags: None)  # a pair of sockets has none
    run(SWITCH_OFF)
    before = rested()  # what other tests have left to the collector, or is ending still, is none of this one's
    yield
    end = time.monotonic() + 10
    gc.collect()
    while (left := Host().beyond(before)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


# Reads and writes anywhere

PORTS = (
    *range(layout.SERIAL, layout.SERIAL + 8), layout.SLEEP_STATUS, 0xCF8, 0xCFC, 0xCFE, 0x60, 0x64, 0x70, 0x71, 0x80,
    0x20, 0x21, 0x40, 0x43, 0xB2, 0x510, 0x511, 0xFFFF,
)  # fmt: skip
VALUES = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def somewhere(dice: random.Random) -> int:
    """An address: a register of a device mostly, the interrupt controllers, holes, the last bytes of all."""
    return dice.choice((
        layout.VIRTIO_MMIO + dice.randrange(7) * 0x1000 + 4 * dice.randrange(0x100 >> 2),
        layout.VIRTIO_MMIO + dice.randrange(7) * 0x1000 + dice.randrange(0x1000),
        layout.IOAPIC + dice.choice((0, 0x10, 0x20, 0x40, dice.randrange(0x1000))),
        layout.LAPIC + 0x10 * dice.randrange(0x40),
        layout.VIRTIO_MMIO - 4,
        RAM - 4 + dice.randrange(8),
        dice.randrange(RAM, 1 << 32),
        0xFFFFFFFC,
    ))  # fmt: skip


def number(dice: random.Random) -> int:
    return dice.choice((dice.choice(VALUES), dice.getrandbits(32), dice.randrange(64)))


def load(register: str, value: int) -> bytes:
    """mov register, value"""
    return bytes((0xB8 + ("eax", "ecx", "edx", "ebx", "", "", "esi").index(register),)) + struct.pack("<I", value)


# Encoded here, for hundreds of assembler's runs would take longer than the guests do. By width: 1, 2, 4.
OUT = (b"\xee", b"\x66\xef", b"\xef")  # out dx, al; ax; eax
IN = (b"\xec", b"\x66\xed", b"\xed")  # in al, dx; ax; eax
STORE = (b"\x88\x03", b"\x66\x89\x03", b"\x89\x03", b"\x89\x03")  # mov [ebx], al; ax; eax
FETCH = (b"\x8a\x03", b"\x66\x8b\x03", b"\x8b\x03", b"\x8b\x03")  # mov al, [ebx]; ax; eax
REP_OUTSB, LOCK_OR, WRMSR, RDMSR = b"\xf3\x6e", b"\xf0\x83\x0b", b"\x0f\x30", b"\x0f\x32"
SWITCH_OFF = load("edx", layout.SLEEP_CONTROL) + load("eax", layout.S5 << 2 | 1 << 5) + OUT[0]


def deed(dice: random.Random) -> bytes:
    """One thing that a guest can do to its monitor."""
    kind = dice.randrange(8)
    if kind < 2:
        port = dice.choice((dice.choice(PORTS), dice.randrange(1 << 16)))
        return load("edx", port) + load("eax", number(dice)) + dice.choice(OUT if kind else IN)
    if kind < 6:
        place = load("ebx", somewhere(dice)) + load("eax", number(dice))
        return place + dice.choice(STORE if kind < 5 else FETCH)
    if kind == 6:
        port = load("edx", dice.choice(PORTS)) + load("esi", 0x4000)
        return port + load("ecx", dice.randrange(1, 70)) + REP_OUTSB
    return load("ebx", somewhere(dice)) + LOCK_OR + bytes((number(dice) & 0x7F,))


ENDS = {OFF, REBOOT, FAULT, STUCK}


def test_writes_anywhere_end_the_guest_at_worst() -> None:
    """A hundred machines of forty deeds each; a hang of the monitor's, or a fault of Python's, would end the test."""

    def program(seed: int) -> bytes:
        dice = random.Random(seed)
        return b"".join(deed(dice) for _ in range(40)) + SWITCH_OFF

    for seed, end in zip(SEEDS, run_all([(program(seed), b"") for seed in SEEDS], 5), strict=True):
        assert end is not None and end.kind in ENDS and bare(end), f"seed {seed}: {end}"


def bare(end: End) -> bool:
    """A fault that was told, not an error of ours that was caught: those end a machine as stuck, in Python's words."""
    words = ("index out of range", "object", "argument", "unpack", "invalid literal", "NoneType", "Errno", "KeyError")
    return not any(word in end.cause for word in words)


def test_any_model_specific_register_is_taken_or_refused() -> None:
    """Without a handler what is refused is a triple fault, which is an end of the guest's own."""

    def program(seed: int) -> bytes:
        dice = random.Random(~seed)
        first, count = dice.choice(
            ((0, 0x2000), (0x4B564D00, 16), (0xC0000080, 256), (0xC0010000, 0x200), (0, 1 << 32))
        )
        register = first + dice.randrange(count)
        values = load("ecx", register) + load("eax", number(dice)) + load("edx", number(dice))
        return values + WRMSR + RDMSR + SWITCH_OFF

    for seed, end in zip(SEEDS, run_all([(program(seed), b"") for seed in SEEDS], 0.3), strict=True):
        assert end is None or (end.kind in ENDS and bare(end)), f"seed {seed}: {end}"


# Rings

DEPTH = 16
DESCRIPTORS, AVAILABLE, USED = RINGS, RINGS + 0x1000, RINGS + 0x2000


def set_up(number: int, queue: int, features: int = 0) -> str:
    """What a driver writes to bring a device's queue up, and the bell."""
    base = layout.VIRTIO_MMIO + number * layout.VIRTIO_MMIO_SIZE
    pairs = (
        *((mmio.STATUS, status) for status in (0, 1, 3)),
        (mmio.DRIVER_FEATURES_SEL, 0), (mmio.DRIVER_FEATURES, features),
        (mmio.DRIVER_FEATURES_SEL, 1), (mmio.DRIVER_FEATURES, 1),
        (mmio.STATUS, 0xB), (mmio.QUEUE_SEL, queue), (mmio.QUEUE_NUM, DEPTH),
        (mmio.QUEUE_DESC, DESCRIPTORS), (mmio.QUEUE_DRIVER, AVAILABLE), (mmio.QUEUE_DEVICE, USED),
        (mmio.QUEUE_READY, 1), (mmio.STATUS, 0xF), (mmio.QUEUE_NOTIFY, queue),
    )  # fmt: skip
    return "\n".join(f"mov dword ptr [{base + register:#x}], {value:#x}" for register, value in pairs)


# The place of each device above, and a queue of it that asks for something at once.
TARGETS = {"rng": (0, 0), "console": (1, 1), "balloon": (2, 0), "block": (3, 0), "net": (4, 1), "vsock": (5, 1)}
SETTLED = "again: pause\njmp again"


def rings(descriptors: list[tuple[int, int, int, int]], heads: list[int], index: int | None = None) -> bytes:
    """Both of the driver's: the table, and what is available."""
    table = b"".join(struct.pack("<QIHH", *item) for item in descriptors)
    index = len(heads) if index is None else index
    return table.ljust(0x1000, b"\0") + struct.pack(f"<HH{len(heads)}H", 0, index, *heads)


BUFFER = 0x180000
BROKEN = {
    "a loop": (rings([(BUFFER, 8, WRITE | NEXT, 1), (BUFFER, 8, WRITE | NEXT, 0)], [0]), "chain"),
    "no such descriptor": (rings([(BUFFER, 8, WRITE | NEXT, 999)], [0]), "descriptor"),
    "no such head": (rings([(BUFFER, 8, WRITE, 0)], [77]), "descriptor"),
    "outside of memory": (rings([(1 << 40, 4096, WRITE, 0)], [0]), "memory"),
    "over the end": (rings([(RAM - 8, 4096, WRITE, 0)], [0]), "memory"),
    "around the end": (rings([((1 << 64) - 8, 4096, WRITE, 0)], [0]), "memory"),
    "more than there are": (rings([(BUFFER, 8, WRITE, 0)], [0], index=DEPTH + 1), "17 chains"),
    "a table that is none": (rings([(BUFFER, 17, INDIRECT, 0)], [0]), ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_ring_ends_its_guest_with_the_cause(kind: str) -> None:
    content, word = BROKEN[kind]
    end = run(assemble(f"{set_up(0, 0)}\n{SETTLED}"), 5, content)
    assert end is not None and end.kind == FAULT, end
    assert word in end.cause and bare(end), end


@pytest.mark.parametrize("name", TARGETS)
def test_any_rings_are_served_or_end_the_guest(name: str) -> None:
    """Sixteen machines per device, whose rings are dice; addresses and sizes are mostly such as could be."""
    code = assemble(f"{set_up(*TARGETS[name])}\n{SETTLED}")

    def content(seed: int) -> bytes:
        dice = random.Random(f"{name} {seed}")
        table = [
            (dice.choice((BUFFER, BUFFER, RAM - 16, dice.getrandbits(64), dice.randrange(RAM))),
             dice.choice((0, 1, 8, 12, 16, 44, 4096, dice.getrandbits(32))),
             dice.choice((0, NEXT, WRITE, WRITE | NEXT, INDIRECT, dice.randrange(8))), dice.randrange(DEPTH))
            for _ in range(DEPTH)
        ]  # fmt: skip
        heads = [dice.randrange(DEPTH) for _ in range(DEPTH)]
        return rings(table, heads, dice.randrange(DEPTH + 1)) + dice.randbytes(256)

    seeds = SEEDS[:16]
    for seed, end in zip(seeds, run_all([(code, content(seed)) for seed in seeds], 0.3), strict=True):
        assert end is None or (end.kind == FAULT and bare(end)), f"{name}, seed {seed}: {end}"


# One does not disturb another


def test_a_neighbour_in_the_same_process_notices_nothing() -> None:
    count = "again: inc dword ptr [0x4000]\nmov edx, 0x3f8\nmov al, 65\nout dx, al\njmp again"
    with board() as good:
        memory = good.machine.memory
        memory.write(START, assemble(count))
        good.machine.start(protected())
        for seed in SEEDS[:8]:
            content, _ = BROKEN[sorted(BROKEN)[seed % len(BROKEN)]]
            end = run(assemble(f"{set_up(0, 0)}\n{SETTLED}"), 5, content)
            assert end is not None and end.kind == FAULT
        before = bytes(memory.read(0x4000, 4))
        end_of_patience = time.monotonic() + 5
        while bytes(memory.read(0x4000, 4)) == before and time.monotonic() < end_of_patience:
            time.sleep(0.01)
        assert bytes(memory.read(0x4000, 4)) != before
        assert good.machine.end is None


def test_machines_that_are_closed_at_any_instant_leave_nothing() -> None:
    """Before, during and after their first instructions, also while held."""
    code = assemble("again: mov edx, 0x3f8\nmov al, 65\nout dx, al\njmp again")
    dice = random.Random(1)
    for _ in range(30):
        with board(vcpus=dice.choice((1, 2))) as made:
            made.machine.memory.write(START, code)
            if dice.random() < 0.9:
                made.machine.start(protected(), held=dice.random() < 0.2)
                time.sleep(dice.choice((0, 0.001, 0.01)))
                if dice.random() < 0.3:
                    with contextlib.suppress(Exception):
                        made.machine.pause()
