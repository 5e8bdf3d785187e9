"""Names: what a guest's programs ask 127.0.0.11, asked at that address of the network that the machine has joined.

Engines, ours too, put their resolver on the loopback of the namespace, which no card of a guest reaches. So the guest
sends its questions over vsock (guest/resolver.c), and this end is a socket inside that namespace, connected before the
cage closed. Datagrams stay datagrams: what there is no room for is lost, and asked again by whoever misses it.

Who asks over TCP has a connection over vsock and one of ours: ``Sessions``.
"""

from __future__ import annotations

import os

from mamushka.linux.socket import connect_ipv4, disconnect
from mamushka.machine.agent.pump import Pump
from mamushka.machine.devices.virtio.vsock import Connection, Endpoint
from mamushka.machine.streams import VsockStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.loop import Loop

# Of TCP and, for datagrams, of vsock: the number by which DNS is known; and of vsock, for streams, the one after it.
PORT, STREAMS = 53, 54
_ADDRESS = bytes((127, 0, 0, 11))
# Streams that a machine has at once. They are rare: an answer was too long for a datagram.
SESSIONS_MAX = 4
# A question is a name of at most 255 bytes and little else; an answer over UDP ends at what its datagram holds.
_QUESTION_MAX = 4096
_ANSWER_MAX = 65535
_LENGTH = 2  # bytes before each message, as DNS has it over TCP: RFC 1035, section 4.2.2
# One turn of the loop passes on at most so many, so that a flood does not keep it from other devices.
_TURN_MAX = 32


class Names:
    """The host's end. ``fd`` is the socket, non-blocking; owned. All calls in the loop's thread."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop, self._fd = loop, fd
        self._asker: _Asker | None = None

    def accept(self, connection: Connection) -> None:
        """The guest calls; if it did before, that connection is over."""
        if self._asker is None:
            self._loop.watch(self._fd, self._answered)
        else:
            self._asker.connection.reset()
        self._asker = connection.endpoint = _Asker(self, connection)

    def ask(self, question: bytes) -> None:
        """Send a question."""
        try:
            os.write(self._fd, question)
        except OSError:  # nobody answers there, or there is no room
            pass

    def forget(self, asker: _Asker) -> None:
        """It has hung up."""
        if asker is self._asker:
            self._asker = None
            self._loop.forget(self._fd)

    def _answered(self, _events: int) -> None:
        for _ in range(_TURN_MAX):
            try:
                answer = os.read(self._fd, _ANSWER_MAX)
            except BlockingIOError:
                return
            except OSError:  # nobody answers there
                continue
            if self._asker is not None:
                self._asker.tell(answer)


class _Asker(Endpoint):
    """One connection of the guest's."""

    def __init__(self, names: Names, connection: Connection) -> None:
        self._names, self.connection = names, connection
        self._got = bytearray()

    def tell(self, answer: bytes) -> None:
        """Send an answer, or lose it."""
        if self.connection.room >= _LENGTH + len(answer):
            self.connection.send(len(answer).to_bytes(_LENGTH, "big") + answer)

    def received(self, view: memoryview) -> None:
        """Whole questions are asked; what is left of the next stays."""
        self._got += view
        self.connection.consumed(len(view))
        while len(self._got) >= _LENGTH:
            size = int.from_bytes(self._got[:_LENGTH], "big")
            if size > _QUESTION_MAX:
                self.connection.reset()
                self._names.forget(self)
                return
            if len(self._got) < _LENGTH + size:
                return
            self._names.ask(bytes(self._got[_LENGTH : _LENGTH + size]))
            del self._got[: _LENGTH + size]

    def ended(self) -> None:
        """The guest asks no more."""
        self.connection.close()
        self._names.forget(self)

    def reset(self) -> None:
        """The connection is gone."""
        self._names.forget(self)


class Sessions:
    """The host's end of questions over TCP. All calls in the loop's thread.

    ``fds`` are TCP sockets of the namespace, not connected, non-blocking; owned. No further ones can be made in the
    cage, so each is used again and again, and the oldest connection is given up for the newest.
    """

    def __init__(self, loop: Loop, fds: Sequence[int], address: bytes = _ADDRESS, port: int = PORT) -> None:
        self._loop, self._free, self._where = loop, list(fds), (address, port)
        self._busy: dict[int, Pump] = {}  # by our socket, oldest first

    def accept(self, connection: Connection) -> None:
        """A program of the guest's calls."""
        if not self._free and self._busy:
            self._end(next(iter(self._busy)))
        if not self._free:
            connection.reset()
            return
        fd = self._free.pop()
        try:
            connect_ipv4(fd, *self._where)
        except BlockingIOError:
            pass  # whether somebody answers is seen by reading
        except OSError:
            self._free.append(fd)
            connection.reset()
            return
        self._busy[fd] = pump = Pump(self._loop, fd, fd, lambda: self._end(fd))
        pump.opened(VsockStream(connection), b"")

    def _end(self, fd: int) -> None:
        pump = self._busy.pop(fd, None)
        if pump is not None:
            pump.close()
            disconnect(fd)
            self._free.append(fd)
