"""The loop of a shim: a process's streams on one side, a log and any number of clients on the other.

Output goes to the log and to every client that asked for it. A client that does not keep up holds back the output of
the process, as with Docker: nothing is dropped and nothing is kept without bound. Input flows the other way under the
same rule. Nobody is ever asked again and again: the loop sleeps in poll(2) until a descriptor has something to say.
"""

from __future__ import annotations

import os
import select

from mamushka.engine import frames
from mamushka.errors import Invalid
from mamushka.runtime import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.engine.logs import LogFile

    Ready = Callable[[int], None]

# Each client costs a descriptor; nobody attaches a hundred times to one workload in earnest.
CLIENTS_MAX = 128
_GONE = select.POLLHUP | select.POLLERR


class Client:
    """One connection: what it wants, and what it has not taken yet."""

    __slots__ = ("backlog", "fd", "flags")

    def __init__(self, fd: int, flags: int = 0) -> None:
        """``flags`` of ATTACH, and perhaps ONCE."""
        os.set_blocking(fd, False)
        self.fd = fd
        self.flags = flags
        self.backlog: list[bytes] = []

    def send(self, message: bytes) -> bool:
        """Send, or keep for later; False when the other side is gone."""
        self.backlog.append(message)
        return self.flush()

    def flush(self) -> bool:
        """Send what was kept, as far as the other side takes it."""
        try:
            while self.backlog:
                os.write(self.fd, self.backlog[0])
                del self.backlog[0]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class Pump:
    """Descriptors and what to do when they are ready. It owns them and closes each at its end."""

    def __init__(self, *, listener: int = -1, log: LogFile | None = None) -> None:
        self.listener = listener
        self.log = log
        self.clients: list[Client] = []
        self.pid = 0
        self.started = 0.0
        self.pidfd = -1
        self.outputs: dict[int, int] = {}  # descriptor: frames.OUT | frames.ERR
        self.stdin = -1
        self.console = -1
        self.exit: Exit | None = None
        self.quiet = False
        self.further: dict[int, Ready] = {}  # descriptors of others that share the loop
        self.policy: tuple[str, int] | None = None
        self.names: Callable[[str, tuple[str, ...]], bytes] | None = None  # what a client is answered who asks for them
        self._input = b""
        self._end_of_input = False

    def adopt(self, pid: int, pidfd: int, *, started: float, outputs: dict[int, int], stdin: int, console: int) -> None:
        """Serve this process from now on. ``stdin`` of a terminal is a copy of ``console``."""
        for fd in (*outputs, stdin):
            if fd >= 0:
                os.set_blocking(fd, False)
        self.pid, self.pidfd, self.outputs, self.stdin, self.console = pid, pidfd, outputs, stdin, console
        self.started, self.exit, self._input, self._end_of_input = started, None, b"", False

    def rest(self) -> None:
        """No process for a while: the last one ended, another may follow."""
        self.exit = None

    def run(self, *, until: float | None = None, idle: float | None = None) -> bool:
        """Serve until the process has ended and all its output is passed on.

        Returns False earlier: at ``until`` (monotonic seconds), when ``quiet`` is asked for while no process runs, or
        after ``idle`` seconds in which nothing happened and nothing waits to be sent.
        """
        while not self._done():
            if self.pidfd < 0 and self.exit is None and self.quiet:
                return False
            timeout = self._timeout(until, idle)
            ready = self._poll(timeout)
            if not ready and self.exit is not None and not self._blocked():
                self._close_outputs()  # ended, and who still holds the other end is no part of the workload
            elif not ready and timeout is not None:
                return False
        return True

    def linger(self) -> None:
        """Serve until each client took what it was sent, or went away."""
        while any(client.backlog for client in self.clients):
            self._poll(None)

    def tell(self, message: bytes) -> None:
        """Send to every client."""
        for client in list(self.clients):
            self._send(client, message)

    def close(self) -> None:
        """Close everything that is left."""
        for client in list(self.clients):
            self._drop(client)
        self._close_outputs()
        self._close_stdin()

    @property
    def settled(self) -> bool:
        """Whether nothing is half done, so that the loop could be left and entered again elsewhere."""
        waiting = self._input or self._end_of_input or any(client.backlog for client in self.clients)
        return not waiting and self.exit is None and (self.log is None or self.log.idle)

    # one turn of the loop

    def _done(self) -> bool:
        return self.exit is not None and not self.outputs

    def _blocked(self) -> bool:
        return any(client.backlog for client in self.clients)

    def _timeout(self, until: float | None, idle: float | None) -> float | None:
        if self.exit is not None:
            return None if self._blocked() else 0.0
        if until is not None:
            from time import monotonic

            return max(0.0, until - monotonic())
        return idle if self.settled else None

    def _poll(self, timeout: float | None) -> bool:
        poll = select.poll()
        if self.listener >= 0 and len(self.clients) < CLIENTS_MAX:
            poll.register(self.listener, select.POLLIN)
        if self.pidfd >= 0:
            poll.register(self.pidfd, select.POLLIN)
        for fd in () if self._blocked() else self.outputs:
            poll.register(fd, select.POLLIN)
        if self.stdin >= 0 and self._input:
            poll.register(self.stdin, select.POLLOUT)
        for client in self.clients:
            wanted = (0 if self._input else select.POLLIN) | (select.POLLOUT if client.backlog else 0)
            if wanted:  # without a wish poll would still tell of a hang-up, again and again
                poll.register(client.fd, wanted)
        for fd in self.further:
            poll.register(fd, select.POLLIN)
        events = poll.poll(None if timeout is None else timeout * 1000)
        for fd, what in events:
            self._ready(fd, what)
        return bool(events)

    def _ready(self, fd: int, what: int) -> None:
        if fd in self.outputs:
            self._read_output(fd)
        elif fd == self.pidfd:
            self._reap()
        elif fd == self.listener:
            self._accept()
        elif fd == self.stdin:
            self._write_input()
        elif fd in self.further:
            self.further[fd](fd)
        else:
            for client in self.clients:
                if client.fd == fd:
                    self._serve(client, what)
                    return

    def _read_output(self, fd: int) -> None:
        try:
            data = os.read(fd, frames.DATA_MAX)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody holds the terminal's other side any more
            data = b""
        if not data:
            self._close_output(fd)
            return
        kind = self.outputs[fd]
        if self.log is not None:
            from time import time_ns

            self.log.write("stdout" if kind == frames.OUT else "stderr", data, time_ns())
        message = frames.data(kind, data)
        for client in list(self.clients):
            if client.flags & frames.OUTPUT:
                self._send(client, message)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.exit = Exit(code=code) if code >= 0 else Exit(signal=-code)
        os.close(self.pidfd)
        self.pidfd = -1

    def _accept(self) -> None:
        import _socket

        listener = _socket.socket(fileno=self.listener)
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
            self.clients.append(Client(fd))
        except OSError:
            pass  # it went away again
        finally:
            listener.detach()

    def _serve(self, client: Client, what: int) -> None:
        if what & select.POLLOUT and not client.flush():
            self._drop(client)
        elif what & select.POLLIN:
            self._hear(client)
        elif what & _GONE:
            self._drop(client)

    def _hear(self, client: Client) -> None:
        try:
            message = os.read(client.fd, frames.MESSAGE_MAX)
            if not message:
                self._drop(client)
                return
            self._obey(client, *frames.parse(message))
        except BlockingIOError:
            return
        except (OSError, Invalid):
            self._drop(client)

    def _obey(self, client: Client, kind: int, content: object) -> None:
        if kind == frames.ATTACH and isinstance(content, int):
            client.flags = content & (frames.OUTPUT | frames.INPUT) | client.flags & frames.ONCE
            if self.pid:
                self._send(client, frames.started(self.pid, self.started))
        elif kind == frames.STDIN and isinstance(content, bytes):
            self._input += content if self.stdin >= 0 else b""
            self._write_input()
        elif kind == frames.END:
            self._end_of_input = self.console < 0  # a terminal has no half-close; ^D is typed like any other key
            self._write_input()
        elif kind == frames.RESIZE and self.console >= 0 and isinstance(content, tuple):
            from mamushka.linux.terminal import set_size

            set_size(self.console, *content)
        elif kind == frames.QUIET:
            self.quiet = True
            self._send(client, frames.plain(frames.DONE))
        elif kind == frames.POLICY and isinstance(content, tuple):
            self.policy = content
            self._send(client, frames.plain(frames.DONE))
        elif kind == frames.NAMES and isinstance(content, tuple) and self.names is not None:
            self._send(client, self.names(*content))

    def _write_input(self) -> None:
        try:
            while self._input:
                self._input = self._input[os.write(self.stdin, self._input[: frames.DATA_MAX]) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._input = b""
            self._end_of_input = True
        if self._end_of_input:
            self._end_of_input = False
            self._close_stdin()

    def _send(self, client: Client, message: bytes) -> None:
        if not client.send(message):
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self.clients.remove(client)
        os.close(client.fd)
        if client.flags & frames.ONCE and self.console < 0:
            self._end_of_input = True
            self._write_input()

    def _close_output(self, fd: int) -> None:
        del self.outputs[fd]
        if fd == self.console:
            self.console = -1
            self._close_stdin()
        os.close(fd)

    def _close_outputs(self) -> None:
        for fd in list(self.outputs):
            self._close_output(fd)

    def _close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
