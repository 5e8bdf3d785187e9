"""The connections between the host and a guest's agent: one for control, one for each stream.

The guest calls the host, never the other way round. A connection's first frame says what it is for; a stream's carries
the secret that the host gave the agent in its greeting, because a program in the guest can call the same port.
All of it happens in the loop's thread; ``Channel.request`` may be called from any other.
"""

from __future__ import annotations

import os
import threading

from mamushka import trace
from mamushka.errors import GuestFault, Unavailable
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import (
    Answer,
    Exited,
    Failure,
    Hello,
    Log,
    Opened,
    Parser,
    frame,
    number,
    raw,
    text,
)
from mamushka.machine.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from mamushka.machine.agent.protocol import Event
    from mamushka.machine.loop import Loop

    class Peer(Protocol):
        """Who is told what comes over a connection. In the loop's thread."""

        def received(self, data: memoryview) -> None:
            """Bytes came; the view is valid during the call."""

        def ended(self) -> None:
            """No more will come: the other side closed its half, or all of it."""

        def writable(self) -> None:
            """All that was sent has been taken."""

    class Connection(Protocol):
        """One side of a stream of bytes. All calls in the loop's thread; vsock's device has such, and sockets."""

        def attach(self, peer: Peer) -> None:
            """Tell this one from now on; what came before is told at once."""

        def send(self, data: bytes | memoryview) -> None:
            """Send, or keep a copy until the other side takes it; ``pending`` says how much is kept."""

        @property
        def pending(self) -> int:
            """Bytes that the other side has not taken yet."""

        def hold(self, held: bool) -> None:
            """While held nothing is received, and the other side gets no credit."""

        def shutdown(self) -> None:
            """Nothing more will be sent, once what is kept has been."""

        def close(self) -> None:
            """Forget it; the other side sees the end. No call to the peer follows."""


# A connection that has not said within so many bytes what it is for is none of the agent's.
_OPENING_MAX = 4096
# Connections that have said nothing yet; the agent has one at a time, a program of the guest's might make many.
_UNKNOWN_MAX = 64
# Frames of the host's that the guest does not take: four of the largest.
_PENDING_MAX = 16 << 20


class Request:
    """A question on its way; ``result`` waits for the answer, and has ``look`` say what a silent guest does."""

    def __init__(self, what: str, look: Callable[[], str] | None = None) -> None:
        self.what, self._look = what, look
        self._done = threading.Event()
        self._answer: Answer | Failure | None = None
        self._error: BaseException | None = None

    def finish(self, answer: Answer | Failure | None, error: BaseException | None = None) -> None:
        """Called by the channel, in the loop's thread."""
        if not self._done.is_set():
            self._answer, self._error = answer, error
            self._done.set()

    def result(self, timeout: float | None = None) -> Answer | Failure:
        """The answer; Unavailable when none comes in so many seconds, or none can come any more."""
        if not self._done.wait(timeout):
            seen = f"; {self._look()}" if self._look is not None else ""
            if not self._done.is_set():
                raise Unavailable(f"the guest's agent did not answer in {timeout:g} s: {self.what}{seen}",
                                  hint="the guest is overloaded or hangs; mamushka kill ends it")  # fmt: skip
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer


class Channel:
    """The host's end of all connections to one guest's agent.

    ``told`` gets Hello, Exited and Log; ``broken`` a GuestFault, after which the machine is to end. Both are called in
    the loop's thread. ``token`` is that of a saved machine that goes on; a new machine gets a new one, and with every
    greeting the secret is another: clones of one machine do not know each other's.
    """

    def __init__(
        self,
        loop: Loop,
        told: Callable[[Event], None],
        broken: Callable[[GuestFault], None],
        token: bytes = b"",
    ) -> None:
        self._loop, self._told, self.broken = loop, told, broken
        self.token = token or os.urandom(words.TOKEN_SIZE)
        self._known = bool(token)
        self.look: Callable[[], str] | None = None  # says what the guest does, when it does not answer
        self.cgroups = ""  # where an agent that is no machine's first process finds cgroup2; for tests
        self._control: Connection | None = None
        self._unknown = 0
        self._requests: dict[int, Request] = {}
        self._last = 0
        self._expected: dict[tuple[int, int], Callable[[Connection, bytes], None]] = {}
        self._parts: list[Connection] = []

    def accept(self, connection: Connection) -> None:
        """The guest called. In the loop's thread."""
        if self._unknown >= _UNKNOWN_MAX:
            connection.close()
            return
        self._unknown += 1
        connection.attach(_Opening(self, connection))

    def expect(self, process: int, stream: int, opened: Callable[[Connection, bytes], None]) -> None:
        """Have the connection that is this stream, with what came along already, given to ``opened``; once."""
        self._loop.call(lambda: self._expected.__setitem__((process, stream), opened))

    def forget(self, process: int, stream: int) -> None:
        """Expect it no more."""
        self._loop.call(lambda: self._expected.pop((process, stream), None))

    def request(self, kind: int, *fields: bytes, what: str = "") -> Request:
        """Ask; from any thread."""
        request = Request(what, self.look)
        self._loop.call(lambda: self._send(kind, fields, request))
        return request

    @property
    def connected(self) -> bool:
        """Whether the agent is there."""
        return self._control is not None

    def close(self) -> None:
        """Nobody will answer any more."""
        self._loop.call(self._lost)

    def _send(self, kind: int, fields: tuple[bytes, ...], request: Request) -> None:
        if self._control is None:
            request.finish(None, Unavailable(f"the guest's agent is not there: {request.what}"))
            return
        if self._control.pending > _PENDING_MAX:
            request.finish(None, Unavailable(f"the guest's agent takes nothing any more: {request.what}"))
            return
        self._last = self._last % 0xFFFFFFFF + 1
        data = frame(kind, self._last, *fields)  # Invalid is the caller's
        self._requests[self._last] = request
        self._control.send(data)

    def _opened(self, opening: _Opening, event: Event, rest: bytes) -> None:
        """A connection's first frame."""
        opening.leave()
        connection = opening.connection
        if isinstance(event, Hello):
            self._greet(connection, event, rest)
        elif isinstance(event, Opened) and event.token == self.token:
            opened = self._expected.pop((event.process, event.stream), None)
            if opened is None:
                connection.close()
            else:
                opened(connection, rest)
        else:
            trace.event("agent.stranger", said=type(event).__name__)
            connection.close()

    def _greet(self, connection: Connection, hello: Hello, rest: bytes) -> None:
        # A second greeting is the agent's only when it knows the secret: its connection broke, or it was restored.
        if self._known and hello.token != self.token:
            trace.event("agent.stranger", said="Hello")
            connection.close()
            return
        if hello.version != words.VERSION:
            raise GuestFault(f"the guest's agent speaks version {hello.version}, this host {words.VERSION}")
        self._lost()
        if self._known:
            self.token = os.urandom(words.TOKEN_SIZE)
        self._known, self._control = True, connection
        connection.attach(_Control(self, connection))
        welcome = Request("greet")
        greeting = [number(words.K_VERSION, words.VERSION), raw(words.K_TOKEN, self.token)]
        if self.cgroups:
            greeting.append(text(words.K_CGROUPS, self.cgroups))
        self._send(words.HELLO, tuple(greeting), welcome)
        self._told(hello)

    def _heard(self, event: Event) -> None:
        """A frame on the control connection."""
        if isinstance(event, Answer | Failure):
            request = self._requests.pop(event.id, None)
            if request is None:
                raise GuestFault(f"the guest's agent answered request {event.id}, which nobody made")
            request.finish(event)
        elif isinstance(event, Exited | Log):
            self._told(event)
        else:
            raise GuestFault(f"the guest's agent sent {type(event).__name__} in the middle")

    def _lost(self) -> None:
        """The control connection is gone; whoever waits is told."""
        if self._control is not None:
            self._control.close()
            self._control = None
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.finish(None, Unavailable(f"the guest's agent went away: {request.what}"))


class _Opening:
    """A connection before its first frame."""

    def __init__(self, channel: Channel, connection: Connection) -> None:
        self.channel, self.connection = channel, connection
        self._parser = Parser()
        self._size = 0
        self._counted = True  # among those that have said nothing

    def received(self, data: memoryview) -> None:
        self._size += len(data)
        try:
            events = self._parser.feed(data, most=1)
            if events:
                self.channel._opened(self, events[0], self._parser.rest)
            elif self._size > _OPENING_MAX:
                self._refuse()
        except GuestFault as fault:
            # Whoever it was: the agent has a secret to show before it can break the machine.
            trace.event("agent.garbage", error=str(fault))
            self._refuse()

    def ended(self) -> None:
        self._refuse()

    def writable(self) -> None:
        pass

    def leave(self) -> None:
        """It is none of those any more that have said nothing."""
        if self._counted:
            self._counted = False
            self.channel._unknown -= 1

    def _refuse(self) -> None:
        self.leave()
        self.connection.close()


class _Control:
    """The connection that requests and events go over."""

    def __init__(self, channel: Channel, connection: Connection) -> None:
        self._channel, self._connection = channel, connection
        self._parser = Parser()

    def received(self, data: memoryview) -> None:
        try:
            for event in self._parser.feed(data):
                self._channel._heard(event)
        except GuestFault as fault:
            self._channel._lost()
            self._channel.broken(fault)

    def ended(self) -> None:
        if self._channel._control is self._connection:
            self._channel._lost()

    def writable(self) -> None:
        pass


class SocketConnection:
    """A connection over a connected socket of the host's, which it owns."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop, self._socket = loop, sock
        self._fd = sock.fileno()
        self._left = bytearray()
        self._peer: Peer | None = None
        self._held = self._ended = self._shut = self._closed = False
        sock.setblocking(False)

    @property
    def pending(self) -> int:
        return len(self._left)

    def attach(self, peer: Peer) -> None:
        self._peer = peer
        self._watch()

    def send(self, data: bytes | memoryview) -> None:
        if self._closed:
            return
        self._left += data
        self._flush()
        self._watch()

    def hold(self, held: bool) -> None:
        self._held = held
        self._watch()

    def shutdown(self) -> None:
        self._shut = True
        self._flush()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.forget(self._fd)
            self._socket.close()

    def _flush(self) -> None:
        try:
            while self._left:
                sent = self._socket.send(self._left)
                del self._left[:sent]
            if self._shut:
                self._socket.shutdown(1)
        except BlockingIOError:
            pass
        except OSError:
            self._left.clear()

    def _watch(self) -> None:
        if self._closed:
            return
        wanted = (READ if not (self._held or self._ended) else 0) | (WRITE if self._left else 0)
        if wanted:
            self._loop.watch(self._fd, self._ready, wanted)
        else:
            self._loop.forget(self._fd)

    def _ready(self, events: int) -> None:
        had = len(self._left)
        if had:
            self._flush()
        if had and not self._left and self._peer is not None:
            self._peer.writable()
        if not (self._closed or self._held or self._ended) and events & ~WRITE:
            self._receive()
        self._watch()

    def _receive(self) -> None:
        assert self._peer is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._peer.received(memoryview(data))
        else:
            self._ended = True
            self._peer.ended()
