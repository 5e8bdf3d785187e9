"""The streams of a process behind a wall, as the one who attached sees them."""

from __future__ import annotations

import os
import select

from mamushka import trace
from mamushka.engine import frames
from mamushka.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    from mamushka.runtime import Exit

    class Attached(Protocol):
        """A duplex connection to a process's streams. A context manager; closing it does not end the process.

        ``write`` blocks while the process takes no input; ``read``, ``resize``, ``kill`` and ``close`` may be
        called from another thread meanwhile, so that output flows on and nothing waits for itself.
        """

        identifier: str  # the workload's id, or the exec's

        def fileno(self) -> int:
            """For select and poll: readable when ``read`` would answer."""

        def read(self) -> tuple[int, bytes]:
            """The next piece: (1 stdout | 2 stderr, bytes); with a terminal all is 1; (0, b"") at the end."""

        def pieces(self) -> Iterator[tuple[int, bytes]]:
            """read until the end."""

        def write(self, data: bytes) -> None:
            """Bytes for its standard input. BrokenPipeError once it takes no more."""

        def close_stdin(self) -> None:
            """End of file on its standard input."""

        def resize(self, rows: int, columns: int) -> None:
            """Tell its terminal the new size."""

        def kill(self, signal: int) -> None:
            """Signal this very process (the exec's own, or the workload's first)."""

        def wait(self, timeout: float | None = None) -> Exit:
            """How it ended. TimeoutError after ``timeout`` seconds."""

        def close(self) -> None:
            """Detach."""

        def __enter__(self) -> Attached: ...

        def __exit__(self, *exc: object) -> None: ...


class Connection:
    """Attached, over a socket to a shim. It owns the descriptor."""

    def __init__(self, identifier: str, fd: int, *, at_end: Callable[[], Exit | None] | None = None) -> None:
        self.identifier = identifier
        self.exit: Exit | None = None
        self._fd = fd
        self._pidfd = -1
        self.pid = 0
        self.started = 0.0  # seconds since the epoch
        self._history: list[bytes] = []
        self._at_end = at_end  # what to do once the process has ended; its answer stands in for a lost exit
        self._ended = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket."""
        return self._fd

    def greet(self) -> None:
        """Wait until the process runs. Raises why it does not."""
        while True:
            kind, content = self._receive()
            if kind == frames.STARTED:
                self._open_process(*content)
                return
            if kind == frames.TRACE:
                trace.event(content[0], **content[1])
            elif kind == frames.FAILED:
                raise content
            elif kind == 0:
                raise Unavailable(
                    f"the shim of {self.identifier[:12]} ended before its program ran",
                    hint="see the kernel's log: was a process killed for want of memory?",
                )

    def prepend(self, pieces: list[bytes]) -> None:
        """Let ``read`` answer these messages first: what happened before."""
        self._history = pieces

    def read(self) -> tuple[int, bytes]:
        """See Attached."""
        if self._history:
            return self._history[0][0], self._history.pop(0)[1:]
        while not self._ended:
            kind, content = self._receive()
            if kind in (frames.OUT, frames.ERR):
                return kind, content
            if kind == frames.STARTED:  # restarted
                self._open_process(*content)
            elif kind == frames.EXIT:
                self._finish(content)
            elif kind == 0:
                self._finish(None)
        return 0, b""

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """See Attached."""
        while (piece := self.read())[0]:
            yield piece

    def write(self, data: bytes) -> None:
        """See Attached."""
        for start in range(0, len(data), frames.DATA_MAX):
            os.write(self._fd, frames.data(frames.STDIN, data[start : start + frames.DATA_MAX]))

    def close_stdin(self) -> None:
        """See Attached."""
        self._say(frames.plain(frames.END))

    def resize(self, rows: int, columns: int) -> None:
        """See Attached."""
        self._say(frames.resize(rows, columns))

    def ask(self, message: bytes) -> None:
        """Say something that the shim acknowledges, and wait until it has. Raises why it could not be done."""
        self._say(message)
        while (answer := self._receive())[0] not in (frames.DONE, frames.FAILED, frames.EXIT, 0):
            pass
        if answer[0] == frames.EXIT:
            self._finish(answer[1])
        elif answer[0] == frames.FAILED:
            raise answer[1]

    def kill(self, signal: int) -> None:
        """See Attached. Straight to the process: it must not queue behind input that nobody reads."""
        from signal import pidfd_send_signal

        try:
            if self._pidfd >= 0:
                pidfd_send_signal(self._pidfd, signal)
        except ProcessLookupError:
            pass

    def wait(self, timeout: float | None = None) -> Exit:
        """See Attached. Output that nobody reads meanwhile is dropped."""
        from time import monotonic

        deadline = None if timeout is None else monotonic() + timeout
        while not self._ended:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            left = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
            if not poll.poll(left):
                raise TimeoutError(f"{self.identifier[:12]} still runs after {timeout} s")
            kind, content = self._receive()
            if kind in (frames.EXIT, 0):
                self._finish(content if kind else None)
        if self.exit is None:
            raise Unavailable(
                f"how {self.identifier[:12]} ended is not known: its shim was killed",
                hint="a shim must not be killed; the workload's own output may tell more",
            )
        return self.exit

    def goes_on(self, further: int) -> bool:
        """Sleep until ``further`` is readable, or the process has ended; False then."""
        while not self._ended:
            poll = select.poll()
            for fd in (self._fd, further):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if self._fd in ready:
                kind, content = self._receive()
                if kind in (frames.EXIT, 0):
                    self._finish(content if kind else None)
            if further in ready:
                return True
        return False

    def close(self) -> None:
        """See Attached."""
        for fd in (self._fd, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._pidfd = -1

    def _say(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, which reading will tell

    def _receive(self) -> tuple[int, Any]:
        try:
            message = os.read(self._fd, frames.MESSAGE_MAX)
        except ConnectionResetError:
            # The shim went before it had read our last input. That is said once; what it sent is still there.
            message = os.read(self._fd, frames.MESSAGE_MAX)
        return frames.parse(message) if message else (0, None)

    def _finish(self, exit: Exit | None) -> None:
        self._ended = True
        self.exit = exit
        if self._at_end is not None:
            known = self._at_end()
            self.exit = exit or known

    def _open_process(self, pid: int, when: float) -> None:
        self.pid, self.started = pid, when
        if self._pidfd >= 0:
            os.close(self._pidfd)
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1


def pair() -> tuple[int, int]:
    """Two connected ends, one for a client and one for the shim that is to be forked."""
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return ours.detach(), theirs.detach()


def connect(identifier: str, directory: str, flags: int, *, at_end: Callable[[], Exit | None]) -> Connection | None:
    """Connect to the shim that listens in ``directory``; None when none does."""
    import _socket

    # A socket's name holds 108 bytes and an id alone has 64: the directory is named by its descriptor.
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        socket.connect(f"/proc/self/fd/{place}/{identifier}")
        socket.send(frames.attach(flags))
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        socket.close()
        return None
    finally:
        os.close(place)
    return Connection(identifier, socket.detach(), at_end=at_end)
