"""The block device. VIRTIO 1.2, section 5.2.

It has a thread of its own, ``block N``. Reading from a disk takes as long as the disk likes, and a flush may take
seconds; in the loop of all devices, console, network and the agent's channel would wait for it. The thread is a
companion of that loop: it hears the queue's bell itself, so a request wakes one thread and no second, and it holds
still when the loop does. Inside the thread one request follows the other, straight between file and guest memory. One
queue is enough: a second would be served by the same interpreter.

The driver is told once for each round of requests, but not later than ``PATIENCE`` after the first was done: else the
first of many would wait for a slow last. The queue itself says whether the driver wants to be told at all.

A disk that fails is told to the guest by a status, as a real one would; it does not end the machine.
"""

from __future__ import annotations

import os
import time
from struct import Struct

from mamushka import trace
from mamushka.errors import MamushkaError
from mamushka.linux.timer import Timer
from mamushka.machine.devices.virtio.block.limits import READ, WRITE, Limits, Throttle
from mamushka.machine.devices.virtio.block.request import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    RANGE,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    Request,
)
from mamushka.machine.devices.virtio.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.block.disk import Disk
    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop

# Feature bits, 5.2.3.
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY, F_DISCARD, F_WRITE_ZEROES = 2, 5, 6, 9, 10, 13, 14

_CONFIG = Struct("<QIIHBBIBBHIBBHIIIIIB3x")
PAGE_SECTORS = 8  # of the guest's page cache and of every file system: smaller requests cost as much
ID = 20  # bytes of the name that GET_ID gives
PATIENCE = 0.002  # seconds

# Ranges in one request, and sectors of each: what bounds how long the thread is busy with one.
RANGES_MAX = 64
DISCARD_MAX = (2 << 30) // SECTOR
REQUEST_MAX = 64 << 20  # bytes to read or write: Linux asks for a few MiB; buffers may overlap, so memory is no bound
ZEROES_MAX = (128 << 20) // SECTOR  # where the host cannot make holes they are written


class Tally:
    """What one kind of request has come to."""

    __slots__ = ("bytes", "requests", "seconds")

    def __init__(self) -> None:
        self.requests, self.bytes, self.seconds = 0, 0, 0.0


class Block(Device):
    """A disk. Owns what is behind it."""

    device_id: ClassVar[int] = 2
    queues: ClassVar[tuple[str, ...]] = ("requestq",)
    depth: ClassVar[int] = 256

    def __init__(self, disk: Disk, *, name: str = "0", serial: str = "", limits: Limits | None = None) -> None:
        """``name`` is the thread's, ``serial`` what the guest finds in /dev/disk/by-id, of which 20 bytes count."""
        self._disk, self.name = disk, name
        self._serial = serial.encode()[:ID].ljust(ID, b"\0")
        self._throttle = Throttle(limits or Limits(), time.monotonic())
        self.features = 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH | 1 << F_TOPOLOGY
        self.features |= 1 << F_DISCARD | 1 << F_WRITE_ZEROES if disk.writable else 1 << F_RO
        self._through = False  # whether each write is flushed: the driver knows no flushes
        self._worker: Loop | None = None
        self._timer: Timer | None = None
        self.tallies = {IN: Tally(), OUT: Tally(), FLUSH: Tally(), DISCARD: Tally()}
        self.errors = 0
        self._serving: dict[int, Callable[[Request], tuple[int, int]]] = {
            IN: self._read, OUT: self._write, FLUSH: self._flush, GET_ID: self._identify,
            DISCARD: self._clear, WRITE_ZEROES: self._clear,
        }  # fmt: skip

    def config(self) -> bytes:
        """5.2.4. Requests of whole pages are wanted, and discards of whole clusters."""
        best = max(PAGE_SECTORS, self._disk.granularity // SECTOR)
        clearing = (DISCARD_MAX, RANGES_MAX, best, ZEROES_MAX, RANGES_MAX, 1) if self._disk.writable else (0,) * 6
        return _CONFIG.pack(
            self._disk.size // SECTOR, 0, self.depth - 2, 0, 0, 0, SECTOR,
            3, 0, PAGE_SECTORS, best,  # physical blocks of 2^3 sectors, aligned; smallest and best size in sectors
            0, 0, 0, *clearing,
        )  # fmt: skip

    # Life

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Hear the bell in a thread of our own."""
        super().start(queues, features, loop)
        queue = queues[0]
        if not queue.depth:
            return
        self._through = not features >> F_FLUSH & 1  # 5.2.6.2: then what was written lasts when it is done
        queue.carried = True
        self._timer = Timer()
        self._worker = loop.companion(f"block {self.name}")
        self._worker.watch(self._timer.fd, self._waited)
        self._worker.watch(queue.bell, self._rung)

    def stop(self) -> None:
        """Wait for the request that is being served; what was not begun stays in the ring."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
            worker.close()
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        super().stop()

    def save(self) -> dict[str, bytes]:
        """Nothing but that the image is complete, for whoever copies it now."""
        self._call(self._disk.flush)
        return {}

    def close(self) -> None:
        """Close the disk."""
        self._disk.close()

    def limit(self, limits: Limits) -> None:
        """Change the limits while it runs."""
        self._call(lambda: setattr(self, "_throttle", Throttle(limits, time.monotonic())))

    def counts(self) -> dict[str, float]:
        """Requests, bytes and seconds (of our work, not of waiting for a limit) since the beginning, and errors."""
        words = {IN: "read", OUT: "write", FLUSH: "flush", DISCARD: "discard"}
        found: dict[str, float] = {"errors": self.errors}
        for kind, tally in self.tallies.items():
            found[f"{words[kind]}_requests"] = tally.requests
            found[f"{words[kind]}_bytes"] = tally.bytes
            found[f"{words[kind]}_seconds"] = tally.seconds
        return found

    def _call(self, function: Callable[[], None]) -> None:
        """In the thread that owns the disk."""
        if self._worker is None:
            function()
        else:
            self._worker.call(function)

    # In the thread

    def _rung(self, _events: int) -> None:
        try:
            os.eventfd_read(self.started[0].bell)
        except BlockingIOError:
            return
        self._serve()

    def _waited(self, _events: int) -> None:
        assert self._timer is not None
        self._timer.clear()
        self._serve()

    def _serve(self) -> None:
        queue = self.started[0]
        told = time.monotonic()
        for chain in queue.serve():
            request = Request(chain)
            begin = time.monotonic()
            direction = READ if request.kind == IN else WRITE
            delay = 0.0 if request.kind in (FLUSH, GET_ID) else self._throttle.delay(direction, begin)
            if delay:
                queue.unpop()
                assert self._timer is not None
                self._timer.set(delay)
                break
            queue.push(chain, self._answer(request, direction, begin))
            if time.monotonic() - told > PATIENCE:
                queue.signal()
                told = time.monotonic()
        queue.signal()

    def _answer(self, request: Request, direction: str, begin: float) -> int:
        """Do it and set the status; bytes that were written from the first on."""
        kind, status, length = request.kind, UNSUPP, 0
        serve = self._serving.get(kind)
        try:
            if serve is not None:
                status, length = serve(request)
        except (OSError, MamushkaError) as error:
            status = IOERR
            trace.event("block.failed", disk=self.name, kind=kind, sector=request.sector, error=str(error))
        request.status[0] = status
        if kind in (IN, OUT, DISCARD, WRITE_ZEROES):
            self._throttle.take(direction, length)
        tally = self.tallies.get(DISCARD if kind == WRITE_ZEROES else kind)
        if status != OK:
            self.errors += 1
        elif tally is not None:
            tally.requests += 1
            tally.bytes += length
            tally.seconds += time.monotonic() - begin
        # 2.7.8.2: so many bytes from the first on were written. Of a read that failed nobody knows how many.
        if kind == GET_ID and status == OK:
            return length + (1 if length == request.room else 0)
        return request.room + 1 if status == OK or not request.room else 0

    def _place(self, request: Request, length: int) -> int:
        """The offset of a request for whole sectors; -1 where it does not lie on the disk, or is too long."""
        offset: int = request.sector * SECTOR
        return -1 if length % SECTOR or length > REQUEST_MAX or offset + length > self._disk.size else offset

    def _read(self, request: Request) -> tuple[int, int]:
        offset = self._place(request, request.room)
        if offset < 0:
            return IOERR, 0
        self._disk.readv(offset, request.writable)
        return OK, request.room

    def _write(self, request: Request) -> tuple[int, int]:
        length = sum(map(len, request.readable))
        offset = self._place(request, length)
        if offset < 0 or not self._disk.writable:
            return IOERR, 0
        self._disk.writev(offset, request.readable)
        if self._through:
            self._disk.flush()
        return OK, length

    def _flush(self, _request: Request) -> tuple[int, int]:
        self._disk.flush()
        return OK, 0

    def _identify(self, request: Request) -> tuple[int, int]:
        rest = memoryview(self._serial)[: request.room]
        length = len(rest)
        for view in request.writable:
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        return OK, length

    def _clear(self, request: Request) -> tuple[int, int]:
        """DISCARD and WRITE_ZEROES, 5.2.6.2. All ranges are looked at before the first is touched."""
        if not self._disk.writable:
            return IOERR, 0
        length = sum(map(len, request.readable))
        if not length or length % RANGE or length > RANGES_MAX * RANGE:
            return IOERR, 0
        zeroes = request.kind == WRITE_ZEROES
        ranges = tuple(request.ranges())
        for sector, sectors, flags in ranges:
            if flags & ~(UNMAP if zeroes else 0):
                return UNSUPP, 0
            if sectors > (ZEROES_MAX if zeroes else DISCARD_MAX) or (sector + sectors) * SECTOR > self._disk.size:
                return IOERR, 0
        for sector, sectors, flags in ranges:
            if zeroes:
                self._disk.write_zeroes(sector * SECTOR, sectors * SECTOR, bool(flags & UNMAP))
            else:
                self._disk.discard(sector * SECTOR, sectors * SECTOR)
        if self._through:
            self._disk.flush()
        return OK, 0
