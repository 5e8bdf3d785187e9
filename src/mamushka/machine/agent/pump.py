"""A stream's connection and the host's descriptors: bytes between them, in the loop's thread, and none kept for long.

The descriptors are others' too and may be blocking: making them non-blocking would change them for all. So one is
written to only when it says that it takes PIPE_BUF bytes, and never more than that at a time.
"""

from __future__ import annotations

import os
import select

from mamushka.machine.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.agent.channel import Connection
    from mamushka.machine.loop import Loop

_TURN = 65536
# pipe(7): while a pipe is ready for writing it takes so many bytes at once, without waiting.
_PIPE_BUF = select.PIPE_BUF
# So many bytes wait for the guest, then the source is not read any more.
_PENDING_MAX = 1 << 18


class Pump:
    """Between a connection and ``source`` (to the guest) and ``sink`` (from it); -1 for none. It owns copies of both.

    ``done`` is called when nothing more comes from the guest and all of it has been written, ``progress`` after some
    was, ``written`` bytes so far.
    """

    def __init__(
        self,
        loop: Loop,
        source: int,
        sink: int,
        done: Callable[[], None],
        progress: Callable[[], None] = lambda: None,
        *,
        terminal: bool = False,
    ) -> None:
        self._loop, self._done, self._terminal = loop, done, terminal
        self._progress, self.written = progress, 0
        # Copies: the loop knows a descriptor once, and the same may be both, or another stream's.
        self._source = os.dup(source) if source >= 0 else -1
        self._sink = os.dup(sink) if sink >= 0 else -1
        self._kept = bytearray()
        self._ended = self._file = False
        self._connection: Connection | None = None

    def opened(self, connection: Connection, rest: bytes) -> None:
        """The guest's end is there; a second time, a new one in place of one that broke."""
        if self._connection is not None:
            self._connection.close()
        self._connection = connection
        connection.attach(self)
        if rest:
            self.received(memoryview(rest))
        if self._source >= 0:
            self._read_on()

    def close(self) -> None:
        """Give everything back; ``done`` is not called any more."""
        self._done = self._progress = lambda: None
        self._end_source()
        self._end_sink()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # From the guest

    def received(self, data: memoryview) -> None:
        if self._sink < 0:
            self.written += len(data)
            self._progress()
            return
        self._kept += data
        self._write()

    def ended(self) -> None:
        self._ended = True
        self._finish()

    def _write(self) -> None:
        while self._kept and self._sink >= 0:
            if not _takes(self._sink):
                self._wait_for_sink()
                return
            try:
                done = os.write(self._sink, self._kept[:_PIPE_BUF])
            except BlockingIOError:
                self._wait_for_sink()
                return
            except OSError:  # its reader went: the guest's process goes on, as with a reader that does not care
                self.written += len(self._kept)
                self._kept.clear()
                self._end_sink()
                break
            del self._kept[:done]
            self.written += done
        if self._connection is not None:
            self._connection.hold(False)
        self._progress()
        self._finish()

    def _wait_for_sink(self) -> None:
        if self._connection is not None:
            self._connection.hold(True)
        self._loop.watch(self._sink, self._sink_ready, WRITE)

    def _sink_ready(self, _events: int) -> None:
        self._loop.forget(self._sink)
        self._write()

    def _finish(self) -> None:
        """The guest's side is closed: of no use in either direction any more."""
        if self._ended and not self._kept:
            self._end_sink()
            self._end_source()
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            done, self._done = self._done, lambda: None
            done()

    # To the guest

    def writable(self) -> None:
        self._read_on()

    def _read_on(self) -> None:
        if self._source < 0 or self._connection is None:
            return
        if not self._file:
            try:
                self._loop.watch(self._source, self._source_ready, READ)
                return
            except PermissionError:  # a regular file, which is always ready
                self._file = True
        while self._source >= 0 and self._connection.pending <= _PENDING_MAX:
            self._source_ready(READ)

    def _source_ready(self, _events: int) -> None:
        assert self._connection is not None
        try:
            data = os.read(self._source, _TURN)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_source()
            if not self._terminal:
                self._connection.shutdown()
            return
        self._connection.send(data)
        if self._connection.pending > _PENDING_MAX:
            self._loop.forget(self._source)

    def _end_source(self) -> None:
        if self._source >= 0:
            self._loop.forget(self._source)
            os.close(self._source)
            self._source = -1

    def _end_sink(self) -> None:
        if self._sink >= 0:
            self._loop.forget(self._sink)
            os.close(self._sink)
            self._sink = -1


def _takes(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
