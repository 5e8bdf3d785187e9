"""Where what a guest says goes: a bounded buffer before a descriptor or function, so that no guest ever waits for it.

``say`` is for any thread. What does not fit is dropped and counted: more would be the host's memory. The loop's thread
gives the rest to its target as that takes it.
"""

from __future__ import annotations

import os
import threading

from mamushka import trace
from mamushka.machine.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.loop import Loop

LIMIT = 64 << 10  # bytes that wait: the messages of a boot
PIECE = 4096  # bytes that a pipe which is ready takes without waiting


class Sink:
    """A buffer before ``target``, which stays its owner's: a descriptor that should not block, or a function that is
    called in the loop's thread. ``dropped`` counts bytes."""

    def __init__(self, loop: Loop, target: int | Callable[[bytes], object]) -> None:
        self._loop, self._target = loop, target
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # guards what follows
        self._taken = threading.Condition(self._lock)  # told when nothing waits any more
        self._waiting = bytearray()
        self.dropped = 0
        loop.watch(self._wake, self._woken)

    def __len__(self) -> int:
        return len(self._waiting)

    def say(self, data: bytes) -> None:
        """Take bytes, as many as there is room for."""
        with self._lock:
            first = not self._waiting
            room = LIMIT - len(self._waiting)
            self._waiting += data[:room]
            self.dropped += max(0, len(data) - room)
        if first and data:
            os.eventfd_write(self._wake, 1)

    def drain(self, seconds: float) -> bool:
        """Wait until all has been taken, for a while at most; whether it has been. From any thread but the loop's."""
        with self._lock:
            return self._taken.wait_for(lambda: not self._waiting, seconds)

    def _woken(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        if not isinstance(self._target, int):
            self._tell()
            return
        try:
            self._loop.watch(self._target, self._writable, WRITE)
        except PermissionError:  # a file: always ready
            while self._waiting:
                self._write(self._target, LIMIT)

    def _tell(self) -> None:
        with self._lock:
            data, self._waiting = bytes(self._waiting), bytearray()
        if data and not isinstance(self._target, int):
            self._target(data)
        with self._lock:
            self._taken.notify_all()

    def _writable(self, _events: int) -> None:
        assert isinstance(self._target, int)
        self._write(self._target, PIECE)
        if not self._waiting:
            self._loop.forget(self._target)
            if self._waiting:  # came between, and found that there was some
                os.eventfd_write(self._wake, 1)

    def _write(self, fd: int, length: int) -> None:
        with self._lock:
            data = bytes(self._waiting[:length])
        try:
            count = os.write(fd, data)
        except BlockingIOError:
            return
        except OSError as error:  # nobody is there any more
            trace.event("sink.lost", error=str(error))
            count = len(data)
            self.dropped += count
        with self._lock:
            del self._waiting[:count]
            if not self._waiting:
                self._taken.notify_all()

    def close(self) -> None:
        """Tell a function what is left; a descriptor that has not taken it by now gets no more."""
        self._tell()
        for fd in (self._wake, self._target):
            if isinstance(fd, int):
                self._loop.forget(fd)
        os.close(self._wake)
