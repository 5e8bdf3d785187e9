"""The streams of one process, taken apart from the one connection on which they arrive.

Each piece of output is marked with its stream. Whoever waits for one stream keeps what comes for the other, so the
two can be read in any order, from two threads or from an event loop; nothing runs in the background.
"""

from __future__ import annotations

import io
import select
import threading

from mamushka.errors import GuestFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from mamushka.engine.attach import Attached

STDOUT, STDERR = 1, 2
# What a process may write to a stream that nobody reads while the other is read; more is its own fault.
UNREAD_MAX = 64 << 20


class Streams:
    """What has arrived of both outputs and was not yet taken. One caller at a time receives, the others wait."""

    def __init__(self, attached: Attached) -> None:
        self.received = 0  # pieces so far
        self.silent = False  # both streams have ended
        self._attached = attached
        self._changed = threading.Condition()  # guards what follows
        self._held = {STDOUT: bytearray(), STDERR: bytearray()}
        self._total = {STDOUT: 0, STDERR: 0}
        self._receiving = False

    def total(self, stream: int) -> int:
        """Bytes that have arrived, taken or not."""
        return self._total[stream]

    def has(self, stream: int, mark: bytes = b"") -> bool:
        """Whether anything of a stream is held, or anything with ``mark`` in it."""
        held = self._held[stream]
        return mark in held if mark else bool(held)

    def take(self, stream: int, size: int = -1) -> bytes:
        """What is held of a stream, at most ``size`` bytes, removed from it."""
        with self._changed:
            held = self._held[stream]
            piece = bytes(held if size < 0 else held[:size])
            del held[: len(piece)]
            return piece

    def take_line(self, stream: int) -> bytes:
        """The first line held, or all where no line has ended."""
        return self.take(stream, self._held[stream].find(b"\n") + 1 or -1)

    def receive(self, timeout: float | None = None) -> None:
        """Wait for one more piece, whoever receives it. TimeoutError."""
        with self._changed:
            if self._receiving:
                if not self._changed.wait(timeout):
                    raise TimeoutError(f"no output for {timeout:g} s")
                return
            self._receiving = True
        stream, piece = 0, b""
        try:
            self._await(timeout)
            stream, piece = self._attached.read()
            self.silent = stream == 0
        finally:
            with self._changed:
                self._receiving = False
                self._changed.notify_all()
                if piece:
                    self._hold(stream, piece)

    def read(self, stream: int, size: int) -> bytes:
        """At least one byte, or nothing at the stream's end."""
        while not self._held[stream] and not self.silent:
            self.receive()
        return self.take(stream, size)

    def _hold(self, stream: int, piece: bytes) -> None:
        self.received += 1
        self._held[stream] += piece
        self._total[stream] += len(piece)
        if len(self._held[stream]) > UNREAD_MAX:
            raise GuestFault(f"the process wrote more than {UNREAD_MAX} bytes that nobody read")

    def _await(self, timeout: float | None) -> None:
        if timeout is None:
            return
        poll = select.poll()
        poll.register(self._attached.fileno(), select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"no output for {timeout:g} s")


class Input(io.RawIOBase):
    """Standard input as a raw file."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def writable(self) -> bool:
        """It is what it is for."""
        return True

    def write(self, piece: ReadableBuffer, /) -> int:
        """All of it; BrokenPipeError once the process takes no more."""
        raw = bytes(piece)
        self._attached.write(raw)
        return len(raw)

    def close(self) -> None:
        """End of file; harmless when the process has ended."""
        if not self.closed:
            super().close()
            try:
                self._attached.close_stdin()
            except OSError:
                pass


class Output(io.RawIOBase):
    """One of the output streams as a raw file."""

    def __init__(self, streams: Streams, stream: int) -> None:
        self._streams = streams
        self._stream = stream

    def readable(self) -> bool:
        """It is what it is for."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """At least one byte, 0 at the end."""
        view = memoryview(buffer)
        piece = self._streams.read(self._stream, len(view))
        view[: len(piece)] = piece
        return len(piece)
