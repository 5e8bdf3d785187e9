"""One port: two queues and two descriptors. See __init__.py."""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.machine.devices.sink import Sink
from mamushka.machine.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop

PIECES = 64  # of a chain, in one call: far below IOV_MAX, and 256 KiB of Linux's buffers
PIECE = 64 << 10  # bytes in one call: what a pipe holds, so that others get their turn


class Port:
    """What the host has at one port. ``source`` is read, ``sink`` written; -1 where there is none.

    Both are non-blocking, two (``dup``) even where one would do, and stay their owner's. A terminal's sink may be a
    function instead. ``name`` is for all ports but the first.
    """

    def __init__(self, source: int = -1, sink: int | Callable[[bytes], object] = -1, name: str = "") -> None:
        self.source, self.sink, self.name = source, sink, name
        self.open = False  # by a program in the guest
        self.skip = 0  # bytes of the next chain to the host that are gone already
        self.ended: Callable[[], None] = lambda: None  # called when the source has come to its end
        self._receiving: Queue | None = None
        self._transmitting: Queue | None = None
        self._loop: Loop | None = None
        self._terminal: Sink | None = None

    # All in the loop's thread

    def start(self, receiving: Queue, transmitting: Queue, loop: Loop, *, terminal: bool) -> None:
        """The driver has queues for it."""
        self._receiving, self._transmitting, self._loop = receiving, transmitting, loop
        if terminal and self._terminal is None and self.sink != -1:
            self._terminal = Sink(loop, self.sink)

    def stop(self) -> None:
        """The driver has gone."""
        if self._loop is not None:
            self._loop.forget(self.source)
            if isinstance(self.sink, int) and self._terminal is None:
                self._loop.forget(self.sink)
        self._receiving = self._transmitting = None
        self.open, self.skip = False, 0

    def close(self) -> None:
        """Tell a terminal's sink what is left."""
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def say(self, data: bytes) -> None:
        """Bytes for a terminal that come without a queue, also before there is a driver."""
        if self._terminal is not None:
            self._terminal.say(data)
        elif not isinstance(self.sink, int):
            self.sink(data)
        elif self.sink >= 0:
            try:
                os.write(self.sink, data)
            except OSError as error:  # full, or nobody is there
                trace.event("console.sink", port=self.name, error=str(error))

    @property
    def dropped(self) -> int:
        """Bytes that a terminal's sink did not take in time."""
        return 0 if self._terminal is None else self._terminal.dropped

    # Into the guest

    def listen(self) -> None:
        """Watch the source, as there may be somebody to read for: a program, and room."""
        if not self.open or self.source < 0 or self._loop is None or self._receiving is None:
            return
        try:
            self._loop.watch(self.source, self._receive)
        except PermissionError:  # a file, or nothing at all: always ready
            for _ in range(self._receiving.depth):
                if not self._take():
                    return
            self._receiving.ring()

    def _receive(self, _events: int) -> None:
        if not self.open or not self._take():
            assert self._loop is not None
            self._loop.forget(self.source)

    def _take(self) -> bool:
        """Fill one chain; False when there is none, or no more to come."""
        queue = self._receiving
        chain = None if queue is None else queue.pop()
        if queue is None or chain is None:
            return False
        try:
            count = os.readv(self.source, _pieces(chain.writable, 0))
        except BlockingIOError:
            queue.unpop()
            return True
        except OSError as error:  # a terminal whose other side was closed says EIO
            trace.event("console.source", port=self.name, error=str(error))
            count = 0
        if count == 0 and chain.writable_length:
            queue.unpop()
            self._end()
            return False
        queue.push(chain, count)
        queue.signal()
        return True

    def _end(self) -> None:
        if self._loop is not None:
            self._loop.forget(self.source)
        self.source = -1
        self.ended()

    # Out of it

    def transmit(self) -> None:
        """Take what the driver gave, as far as the host takes it."""
        queue = self._transmitting
        if queue is None:
            return
        for chain in queue.serve():
            if self._terminal is not None:
                self._say(chain)
            elif isinstance(self.sink, int) and self.sink >= 0 and not self._write(self.sink, chain):
                queue.unpop()
                break
            self.skip = 0
            queue.push(chain)
        queue.signal()

    def _say(self, chain: Chain) -> None:
        assert self._terminal is not None
        for view in _pieces(chain.readable, 0):  # of more than a piece the rest is lost: no driver sends that
            self._terminal.say(bytes(view))

    def _write(self, fd: int, chain: Chain) -> bool:
        """Write a chain, at most a piece of it in one go; False while some is left, and then ``sink`` is watched."""
        assert self._loop is not None
        rest = _pieces(chain.readable, self.skip)
        if rest:
            try:
                self.skip += os.writev(fd, rest)
            except BlockingIOError:
                pass
            except OSError as error:  # nobody listens any more: the bytes go nowhere
                trace.event("console.sink", port=self.name, error=str(error))
                return True
        if self.skip >= chain.readable_length:
            return True
        try:
            self._loop.watch(fd, self._writable, WRITE)
        except PermissionError:  # a file: always ready
            return self._write(fd, chain)
        return False

    def _writable(self, _events: int) -> None:
        assert self._loop is not None and isinstance(self.sink, int)
        self._loop.forget(self.sink)
        self.transmit()


def _pieces(views: Sequence[memoryview], skip: int) -> list[memoryview]:
    """What lies behind ``skip`` bytes, as much as goes in one call."""
    found: list[memoryview] = []
    room = PIECE
    for view in views:
        if skip >= len(view):
            skip -= len(view)
            continue
        if room <= 0 or len(found) == PIECES:
            break
        found.append(view[skip : skip + room])
        room -= len(found[-1])
        skip = 0
    return found
