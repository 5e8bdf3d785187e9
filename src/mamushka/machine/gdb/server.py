"""The socket a debugger connects to: a Unix socket, made for its owner alone, or a port of the loopback interface.

Whoever can connect owns the guest, so there is no other address; a port is open to every user of the host. One
debugger at a time; the machine stops when it comes, and runs on when it goes, also without a word.
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
    from mamushka.machine.gdb.architecture import Architecture
    from mamushka.machine.machine import Machine

LOOPBACK = "127.0.0.1"
_READ_MAX = 4096


class Server:
    """Waits for debuggers in a thread of its own, ``gdb``, from now until ``close``."""

    def __init__(self, machine: Machine, *, unix: str = "", port: int = 0, architecture: Architecture = X86_64) -> None:
        """Listen at the path ``unix``, or at ``port`` of 127.0.0.1 (0: any). OSError where it is taken."""
        self._target = Target(machine, architecture)
        self._unix = unix
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = _socket.socket(_socket.AF_UNIX if unix else _socket.AF_INET)
        try:
            self._bind(port)
        except OSError:
            self._release()
            raise
        self.port = 0 if unix else self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        self._thread.start()

    def _bind(self, port: int) -> None:
        if self._unix:
            before = os.umask(0o177)
            try:
                self._listener.bind(self._unix)
            finally:
                os.umask(before)
        else:
            self._listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            self._listener.bind((LOOPBACK, port))
        self._listener.listen(1)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the machine runs on. Not from the debugger's thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        if self._unix:
            os.unlink(self._unix)
        self._release()

    def _release(self) -> None:
        self._listener.close()
        self._target.close()
        os.close(self._stop)

    # The thread

    def _serve(self) -> None:
        while self._wait(self._listener.fileno()):
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            peer = _socket.socket(fileno=fd)
            try:
                self._target.attach()
            except MamushkaError as error:
                trace.event("gdb.refused", error=str(error))
                peer.close()
                continue
            try:
                self._talk(peer)
            except (MamushkaError, OSError) as error:  # it is gone, or is no debugger
                trace.event("gdb.failed", error=str(error))
            finally:
                self._target.detach()
                peer.close()

    def _wait(self, *fds: int) -> list[int]:
        """Which of them are ready; none where the server is to stop."""
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
            ready = self._wait(peer.fileno(), *more)
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
