"""A vsock driver in the guest's stead, turn by turn and without threads: packets in, packets out, room as given.

It keeps the guest's side of the rules (VIRTIO 1.2, 5.10.6.3) where a test does not break them on purpose, after
Linux's net/vmw_vsock/virtio_transport.c: two descriptors for what it sends, one for what it receives.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mamushka.machine.devices.virtio.queue import NEXT, WRITE, Queue
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.devices.virtio.vsock.packet import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    STREAM,
)
from mamushka.machine.loop import Loop
from mamushka.machine.memory import Memory, Region

DEPTH = 64
SLOT = 0x11000  # room for the largest packet
CID = 3
NAMES = {
    REQUEST: "request", RESPONSE: "response", RST: "rst", SHUTDOWN: "shutdown", RW: "rw",
    CREDIT_UPDATE: "credit", CREDIT_REQUEST: "ask",
}  # fmt: skip


class Packet(NamedTuple):
    """What the device sent."""

    op: str
    host_port: int
    guest_port: int
    flags: int
    alloc: int
    forwarded: int
    data: bytes

    @property
    def ports(self) -> tuple[int, int]:
        return self.host_port, self.guest_port


class Line:
    """An interrupt that is counted."""

    fd = -1

    def __init__(self) -> None:
        self.fired = 0

    def fire(self) -> None:
        self.fired += 1


class Ring:
    """The driver's side of a queue."""

    def __init__(self, memory: Memory, start: int, buffers: int, line: Line) -> None:
        self.memory, self.start, self.buffers = memory, start, buffers
        self.available, self.used = start + 16 * DEPTH, start + 0x800
        self.index = self.seen = 0
        self.free = list(range(DEPTH // 2))
        self.queue = Queue(memory, DEPTH, start, self.available, self.used, 0, line)

    def add(self, parts: list[tuple[int, int, int]], slot: int) -> None:
        """Descriptors 2*slot and on: (gpa, length, flags)."""
        for number, (gpa, length, flags) in enumerate(parts):
            following = NEXT if number + 1 < len(parts) else 0
            entry = struct.pack("<QIHH", gpa, length, flags | following, 2 * slot + number + 1)
            self.memory.write(self.start + 16 * (2 * slot + number), entry)
        self.memory.write(self.available + 4 + 2 * (self.index % DEPTH), struct.pack("<H", 2 * slot))
        self.index = self.index + 1 & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.index))

    def collect(self) -> Iterator[tuple[int, int]]:
        while self.seen != int.from_bytes(self.memory.read(self.used + 2, 2), "little"):
            head, written = struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (self.seen % DEPTH), 8))
            self.seen = self.seen + 1 & 0xFFFF
            yield head // 2, written
            self.free.append(head // 2)


class Driver:
    """The device, its loop (turned by hand), and the rings."""

    def __init__(self, vsock: Vsock | None = None, *, room: int = 0, buffer: int = 4096) -> None:
        self.memory = Memory((Region(0, 0x500000),))
        self.vsock = vsock or Vsock(CID)
        self.failures: list[BaseException] = []
        self.loop = Loop("devices", self.failures.append)
        self.line = Line()
        self.rings = [Ring(self.memory, 0x1000 * (1 + at), 0x10000 + at * 0x230000, self.line) for at in range(3)]
        self.buffer = buffer  # bytes in each buffer for the device's packets, beyond the header
        self.room = 0
        if room:
            self.give(room)
        self.vsock.start([ring.queue for ring in self.rings], 1, self.loop)
        self.turn()

    def turn(self, rounds: int = 50) -> int:
        """Call what is ready until nothing is; how many calls that took, ``rounds`` at most."""
        for count in range(rounds):
            ready = self.loop._epoll.poll(0)
            if not ready:
                return count
            for fd, events in ready:
                if fd in self.loop._ready:
                    self.loop._ready[fd](events)
        return rounds

    def give(self, count: int) -> None:
        """Room for so many packets of the device's."""
        ring = self.rings[0]
        for _ in range(count):
            slot = ring.free.pop()
            ring.add([(ring.buffers + slot * SLOT, HEADER.size + self.buffer, WRITE)], slot)
            self.room += 1
        if self.vsock.started:
            self.vsock.notify(0)

    def raw(self, header: bytes, data: bytes = b"") -> None:
        """Put one packet into the ring, without the doorbell."""
        ring = self.rings[1]
        for _ in ring.collect():
            pass
        slot = ring.free.pop()
        gpa = ring.buffers + slot * SLOT
        self.memory.write(gpa, header + data)
        ring.add([(gpa, len(header), 0), *([(gpa + len(header), len(data), 0)] if data else [])], slot)

    def put(
        self, op: int, ours: int, theirs: int, data: bytes = b"", *, flags: int = 0, alloc: int = 1 << 18,
        forwarded: int = 0, source: int = CID, target: int = HOST, kind: int = STREAM, length: int | None = None,
    ) -> None:  # fmt: skip
        """``ours`` is the host's port, ``theirs`` the guest's."""
        size = len(data) if length is None else length
        header = HEADER.pack(source, target, theirs, ours, size, kind, op, flags, alloc, forwarded)
        self.raw(header, data)

    def send(self, op: int, ours: int, theirs: int, data: bytes = b"", **fields: int) -> None:
        """One packet and the doorbell."""
        self.put(op, ours, theirs, data, **fields)  # type: ignore[arg-type]
        self.vsock.notify(1)
        self.turn()

    def packets(self) -> list[Packet]:
        """What the device has sent since the last time; its room is used up by it."""
        found = []
        ring = self.rings[0]
        for slot, written in ring.collect():
            raw = bytes(self.memory.read(ring.buffers + slot * SLOT, written))
            source, target, ours, theirs, length, kind, op, flags, alloc, forwarded = HEADER.unpack(raw[: HEADER.size])
            assert (target, kind) == (self.vsock.cid, STREAM) and (source == HOST or op == RST)
            assert written == HEADER.size + length
            found.append(Packet(NAMES[op], ours, theirs, flags, alloc, forwarded, raw[HEADER.size :]))
            self.room -= 1
        return found

    def event(self) -> None:
        """A buffer for an event."""
        self.rings[2].add([(self.rings[2].buffers, 4, WRITE)], 0)
        self.vsock.notify(2)

    def close(self) -> None:
        self.vsock.close()
        assert self.loop._ready.keys() == set(), "something is still watched"
        self.loop.close()
        self.memory.close()


@contextmanager
def driver(vsock: Vsock | None = None, *, room: int = 16, buffer: int = 4096) -> Iterator[Driver]:
    """A driver with room for so many packets."""
    made = Driver(vsock, room=room, buffer=buffer)
    try:
        yield made
    finally:
        made.close()
