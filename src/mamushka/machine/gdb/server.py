"""The socket a debugger connects to: a Unix socket, made for its owner alone, or a port of the loopback interface.

Whoever can connect owns the guest, so there is no other address; a port is open to every user of the host. One
debugger at a time; the machine stops when it comes, and runs on when it goes, also without a word.

``listen`` makes the socket, ``Conversation`` is one debugger's connection, and ``Server`` waits for one after the
other. A monitor behind its cage can make no socket: it is handed a listening one before, or connections later.
"""

from __future__ import annotations

import _socket
import os
import select
import threading

from mamushka import trace
from mamushka.errors import MamushkaError
from mamushka.machine.gdb.protocol import INTERRUPT, Packets
from mamushka.machine.gdb.session import GONE, RUNNING, Session
from mamushka.machine.gdb.target import Target
from mamushka.machine.gdb.x86 import X86_64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.gdb.architecture import Architecture
    from mamushka.machine.machine import Machine

LOOPBACK = "127.0.0.1"
_READ_MAX = 4096


def listen(*, unix: str = "", port: int = 0) -> _socket.socket:
    """A socket that listens at the path ``unix``, or at ``port`` of 127.0.0.1 (0: any). OSError where it is taken."""
    listener = _socket.socket(_socket.AF_UNIX if unix else _socket.AF_INET)
    try:
        if unix:
            before = os.umask(0o177)
            try:
                listener.bind(unix)
            finally:
                os.umask(before)
        else:
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def accept(listener: _socket.socket) -> _socket.socket:
    """The next who connects, waited for."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return _socket.socket(fileno=fd)


class Conversation:
    """One debugger after the other, each at a socket that is connected already. All in one thread but ``stop``."""

    def __init__(self, machine: Machine, architecture: Architecture = X86_64) -> None:
        self._target = Target(machine, architecture)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def serve(self, peer: _socket.socket, attached: Callable[[], object] = lambda: None) -> None:
        """Stop the machine, do what the debugger wants until it goes, and let the machine run; hangs up.

        ``attached`` is called once the machine holds still. Conflict where it cannot be debugged now.
        """
        try:
            self._target.attach()
            try:
                attached()
                self._talk(peer)
            except (MamushkaError, OSError) as error:  # it is gone, or is no debugger
                trace.event("gdb.failed", error=str(error))
            finally:
                self._target.detach()
        finally:
            peer.close()

    def stop(self) -> None:
        """End what is being served, and whatever would be. From any thread."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        self._target.close()
        os.close(self._stop)

    def wait(self, *fds: int) -> list[int]:
        """Which of them are ready; none once it is to stop."""
        poll = select.poll()
        for fd in (self._stop, *fds):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll()]
        return [] if self._stop in ready else ready

    def _talk(self, peer: _socket.socket) -> None:
        session, packets = Session(self._target), Packets()
        while session.state != GONE:
            # While it holds still only the debugger has something to say.
            more = (self._target.wake, self._target.ended_fd) if session.state == RUNNING else ()
            ready = self.wait(peer.fileno(), *more)
            if not ready:
                return
            if peer.fileno() in ready:
                data = peer.recv(_READ_MAX)
                if not data:
                    return
                for event in packets.feed(data):
                    self._take(session, packets, event)
            else:
                self._tell(session, packets, interrupted=False)
            peer.sendall(bytes(packets.out))
            packets.out.clear()

    def _take(self, session: Session, packets: Packets, event: bytes) -> None:
        if event == INTERRUPT:
            if session.state == RUNNING:
                self._target.interrupt()
                self._tell(session, packets, interrupted=True)
            return
        answer = session.command(event[1:])
        if answer is not None:
            packets.send(answer)
        packets.acknowledged = session.acknowledged

    def _tell(self, session: Session, packets: Packets, *, interrupted: bool) -> None:
        """The machine has stopped or is about to, or has ended."""
        try:
            packets.send(session.stopped(self._target.stop(), interrupted=interrupted))
        except MamushkaError:
            end = self._target.end
            packets.send(session.ended(0 if end is None else end.status))


class Server:
    """Waits for debuggers in a thread of its own, ``gdb``, until ``close``."""

    def __init__(
        self,
        machine: Machine,
        *,
        unix: str = "",
        port: int = 0,
        architecture: Architecture = X86_64,
        listener: _socket.socket | None = None,
        confine: Callable[[], None] | None = None,
    ) -> None:
        """Begin to wait at ``unix`` or ``port``, as ``listen`` has them.

        With ``listener``, which becomes ours, at that one, from ``begin`` on. The thread calls ``confine`` first.
        """
        self._conversation = Conversation(machine, architecture)
        self._unix = unix
        try:
            self._listener = listener or listen(unix=unix, port=port)
        except OSError:
            self._conversation.close()
            raise
        self.port = 0 if unix or listener else self._listener.getsockname()[1]
        self._confine = confine
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        if listener is None:
            self.begin()

    def begin(self) -> None:
        """Make the thread."""
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the machine runs on. Not from the debugger's thread."""
        self._conversation.stop()
        self._thread.join()
        if self._unix:
            os.unlink(self._unix)
        self._listener.close()
        self._conversation.close()

    def _serve(self) -> None:
        if self._confine is not None:
            self._confine()
        while self._conversation.wait(self._listener.fileno()):
            try:
                self._conversation.serve(accept(self._listener))
            except MamushkaError as error:
                trace.event("gdb.refused", error=str(error))
