"""Names: what a guest's programs ask 127.0.0.11, asked at that address of the network that the machine has joined.

Engines, ours too, put their resolver on the loopback of the namespace, which no card of a guest reaches. So the guest
sends its questions over vsock (guest/resolver.c), and this end is a socket inside that namespace, connected before the
cage closed. Datagrams stay datagrams: what there is no room for is lost, and asked again by whoever misses it.
"""

from __future__ import annotations

import os

from mamushka.machine.devices.virtio.vsock import Connection, Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.loop import Loop

# Of vsock: the number by which DNS is known.
PORT = 53
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
