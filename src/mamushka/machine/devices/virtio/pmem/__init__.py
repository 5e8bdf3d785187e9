"""A file of the host as memory of the guest, which asks for what it wrote to be made durable. VIRTIO 1.2, section 5.19.

The memory itself is a region of kind ``pmem`` like any other; this device tells where it lies, and flushes it. A flush
may take a disk's time and so has a thread of its own: the loop goes on. One ``fsync`` answers all requests that came
before it began.
"""

from __future__ import annotations

import os
import threading
from struct import Struct

from mamushka import trace
from mamushka.machine.devices.virtio.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Region

__all__ = ["Pmem"]

FLUSH = 0  # the one type of request
DONE, FAILED = 0, 1  # 5.19.7.1: zero is success; Linux makes an EIO of anything else

_CONFIG = Struct("<QQ")
_ANSWER = Struct("<I")


class Pmem(Device):
    """Flushes ``region``, which stays its owner's and outlives the device."""

    device_id: ClassVar[int] = 27
    queues: ClassVar[tuple[str, ...]] = ("req_vq",)
    depth: ClassVar[int] = 64

    def __init__(self, region: Region, length: int = 0) -> None:
        """``length`` in bytes, where read-only regions follow that are told of as one with the first."""
        self._region, self._length = region, length or region.length
        self._waiting: list[Chain] = []  # not yet being answered
        self._flushing: list[Chain] = []
        self._result = DONE
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._loop: Loop | None = None

    def config(self) -> bytes:
        """Where it lies."""
        return _CONFIG.pack(self._region.start, self._length)

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Nothing is being flushed."""
        super().start(queues, features, loop)
        self._loop = loop
        loop.watch(self._done, self._flushed)

    def stop(self) -> None:
        """Wait for a flush that runs: its answer is nobody's."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._loop is not None:
            self._loop.forget(self._done)
        self._waiting, self._flushing = [], []
        super().stop()

    def notify(self, index: int) -> None:
        """Take all requests; at most a ring of them waits, as each chain has a descriptor."""
        queue = self.started[index]
        for chain in queue.serve():
            # As many as there are descriptors, or one was given twice.
            room = len(self._waiting) + len(self._flushing) < queue.depth
            if room and chain.readable_length >= 4 and int.from_bytes(chain.take(4), "little") == FLUSH:
                self._waiting.append(chain)
            else:
                queue.push(chain, chain.fill(_ANSWER.pack(FAILED)))
        queue.signal()
        self._flush()

    def _flush(self) -> None:
        """Begin, where there is something to do and nothing being done."""
        if not self._waiting or self._flushing:
            return
        self._flushing, self._waiting = self._waiting, []
        if not self._region.shared or not self._region.writable:
            self._answer(DONE)  # nothing of it ever becomes durable, and nothing is lost
            return
        self._thread = threading.Thread(target=self._sync, name="pmem flush", daemon=True)
        self._thread.start()

    def _sync(self) -> None:
        """In its own thread."""
        try:
            os.fdatasync(self._region.fd)
            self._result = DONE
        except OSError as error:
            trace.event("pmem.flush", error=str(error))
            self._result = FAILED
        os.eventfd_write(self._done, 1)

    def _flushed(self, _events: int) -> None:
        try:
            os.eventfd_read(self._done)
        except BlockingIOError:
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._answer(self._result)
            self._flush()

    def _answer(self, result: int) -> None:
        queue = self.started[0]
        chains, self._flushing = self._flushing, []
        for chain in chains:
            queue.push(chain, chain.fill(_ANSWER.pack(result)))
        queue.signal()

    def save(self) -> dict[str, bytes]:
        """Nothing: what runs is waited for, and answered, so that no request is halfway."""
        while self._thread is not None:
            self._thread.join()
            self._flushed(0)
        return {}

    def close(self) -> None:
        """The eventfd."""
        os.close(self._done)
