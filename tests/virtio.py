"""A driver in the guest's stead: sets a device up through its registers and writes rings as Linux does.

Linux's drivers/virtio/virtio_ring.c and virtio_mmio.c are the model: free descriptors are a list, available.index is
written last, the doorbell is rung where EVENT_IDX or the flag ask for it, interrupts are acknowledged with the status.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.queue import EVENT_IDX, INDIRECT, INDIRECT_DESC, NEXT, WRITE
from mamushka.machine.loop import Loop
from mamushka.machine.memory import Memory, shared_region

RAM = 4 << 20


class Line:
    """Counts. ``fd`` is there as for a back end elsewhere, and is not heard."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.fired = 0
        self._raised = threading.Semaphore(0)

    def fire(self) -> None:
        self.fired += 1
        self._raised.release()

    def wait(self, seconds: float = 5) -> bool:
        return self._raised.acquire(timeout=seconds)

    def close(self) -> None:
        os.close(self.fd)


class Ring:
    """The driver's side of one queue, of which ``start`` is the first address of 64 KiB of its own."""

    def __init__(self, memory: Memory, start: int, depth: int, features: int, ring: object = None) -> None:
        self.memory, self.depth, self.features = memory, depth, features
        self.table, self.available, self.used = start, start + 16 * depth, (start + 18 * depth + 6 + 4095) & ~4095
        self.indirect_at = start + 0x8000
        self._notify = ring
        self.free = list(range(depth))
        self.chains: dict[int, list[int]] = {}
        self.index = self.seen = 0

    @property
    def parts(self) -> tuple[int, int, int]:
        return self.table, self.available, self.used

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def add(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]], *, indirect: bool = False) -> int:
        """Buffers as (gpa, length), made visible; the head."""
        buffers = [(*item, 0) for item in readable] + [(*item, WRITE) for item in writable]
        count = 1 if indirect else len(buffers)
        taken = [self.free.pop() for _ in range(count)]
        if indirect:
            assert self.features >> INDIRECT_DESC & 1
            at = self.indirect_at + taken[0] * 16 * 16
            for index, (gpa, length, flags) in enumerate(buffers):
                following = NEXT if index + 1 < len(buffers) else 0
                self.memory.write(at + 16 * index, struct.pack("<QIHH", gpa, length, flags | following, index + 1))
            self.describe(taken[0], at, 16 * len(buffers), INDIRECT, 0)
        else:
            for position, (gpa, length, flags) in enumerate(buffers):
                last = position + 1 == count
                self.describe(
                    taken[position], gpa, length, flags | (0 if last else NEXT), 0 if last else taken[position + 1]
                )
        self.chains[taken[0]] = taken
        self.memory.write(self.available + 4 + 2 * (self.index % self.depth), struct.pack("<H", taken[0]))
        self.index = self.index + 1 & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.index))
        return taken[0]

    def describe(self, index: int, gpa: int, length: int, flags: int, following: int) -> None:
        self.memory.write(self.table + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def wants_kick(self, before: int) -> bool:
        """virtqueue_kick_prepare, for what was added since ``before``."""
        if self.features >> EVENT_IDX & 1:
            event = self._u16(self.used + 4 + 8 * self.depth)
            return (self.index - event - 1 & 0xFFFF) < (self.index - before & 0xFFFF)
        return not self._u16(self.used) & 1

    def collect(self) -> list[tuple[int, int]]:
        """What was used: (head, bytes written). Asks for an interrupt for the next one, and looks again."""
        found = []
        while True:
            while self.seen != self._u16(self.used + 2):
                entry = self.memory.read(self.used + 4 + 8 * (self.seen % self.depth), 8)
                head, written = struct.unpack("<II", entry)
                self.free += self.chains.pop(head)
                found.append((head, written))
                self.seen = self.seen + 1 & 0xFFFF
            self.memory.write(self.available + 4 + 2 * self.depth, struct.pack("<H", self.seen))
            if self.seen == self._u16(self.used + 2):
                return found


class Guest:
    """A machine of memory, a loop, one device on its transport, and the driver."""

    def __init__(self, device: Device, *, memory: Memory | None = None, depth: int = 0, without: int = 0) -> None:
        self.memory = memory or Memory((shared_region(0, RAM),))
        self.failures: list[BaseException] = []
        self.line = Line()
        self.loop = Loop("devices", self.failures.append)
        self.transport = mmio.Transport(device, self.memory, self.line, self.loop)
        self.device, self.depth, self.without = device, depth, without
        self.rings: list[Ring] = []
        self._next = 0x20000  # behind what buffers of tests use

    def read(self, offset: int) -> int:
        return self.transport.read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.transport.write(offset, 4, value)

    def offered(self) -> int:
        found = 0
        for half in (0, 1):
            self.write(mmio.DEVICE_FEATURES_SEL, half)
            found |= self.read(mmio.DEVICE_FEATURES) << 32 * half
        return found

    def negotiate(self) -> int:
        """As virtio_dev_probe does, up to FEATURES_OK; what was agreed."""
        self.write(mmio.STATUS, 0)
        self.write(mmio.STATUS, mmio.ACKNOWLEDGE)
        self.write(mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER)
        agreed = self.offered() & ~self.without
        for half in (0, 1):
            self.write(mmio.DRIVER_FEATURES_SEL, half)
            self.write(mmio.DRIVER_FEATURES, agreed >> 32 * half & 0xFFFFFFFF)
        self.write(mmio.STATUS, self.read(mmio.STATUS) | mmio.FEATURES_OK)
        assert self.read(mmio.STATUS) & mmio.FEATURES_OK
        return agreed

    def ring(self, index: int, features: int) -> Ring:
        """As vm_setup_vq does."""
        self.write(mmio.QUEUE_SEL, index)
        assert self.read(mmio.QUEUE_READY) == 0
        depth = self.depth or min(self.read(mmio.QUEUE_NUM_MAX), 64)
        start, self._next = self._next, self._next + 0x10000
        ring = Ring(self.memory, start, depth, features)
        self.write(mmio.QUEUE_NUM, depth)
        for register, gpa in zip((mmio.QUEUE_DESC, mmio.QUEUE_DRIVER, mmio.QUEUE_DEVICE), ring.parts, strict=True):
            self.write(register, gpa & 0xFFFFFFFF)
            self.write(register + 4, gpa >> 32)
        self.write(mmio.QUEUE_READY, 1)
        return ring

    def start(self, *, queues: int = -1) -> None:
        self.loop.start()
        self.again(queues=queues)

    def again(self, *, queues: int = -1) -> None:
        """Set the device up, also after a reset."""
        features = self.negotiate()
        count = len(self.device.queues) if queues < 0 else queues
        self.rings = [self.ring(index, features) for index in range(count)]
        self.write(mmio.STATUS, self.read(mmio.STATUS) | mmio.DRIVER_OK)

    def kick(self, index: int) -> None:
        self.write(mmio.QUEUE_NOTIFY, index)

    def interrupt(self) -> int:
        """As vm_interrupt does; the status."""
        status = self.read(mmio.INTERRUPT_STATUS)
        self.write(mmio.INTERRUPT_ACK, status)
        return status

    def ask(self, index: int, request: bytes = b"", room: int = 0) -> tuple[bytes, int]:
        """One request, and what came back: (answer, bytes written). Buffers lie at 0x1000 and 0x11000."""
        ring, before = self.rings[index], self.rings[index].index
        self.memory.write(0x1000, request)
        ring.add([(0x1000, len(request))] if request else [], [(0x11000, room)] if room else [])
        if ring.wants_kick(before):
            self.kick(index)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for _head, written in ring.collect():
                return bytes(self.memory.read(0x11000, room)), written
            self.line.wait(0.05)
            if self.failures:
                raise self.failures[0]
        raise TimeoutError("the device did not answer")

    def close(self) -> None:
        self.loop.stop()
        self.transport.close()
        self.loop.close()
        self.line.close()
        self.memory.close()


@contextmanager
def guest(device: Device, **settings: int) -> Iterator[Guest]:
    """A guest whose driver has not looked at the device yet."""
    made = Guest(device, **settings)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()
