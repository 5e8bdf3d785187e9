"""One client's TCP connection to the responder, and the server's that its question is passed on to."""

from __future__ import annotations

import _socket
import os
import select

from mamushka.network import dns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.network.responder import Responder

_MESSAGE_MAX = 65535
_STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC


class Session:
    """One client's TCP connection: a question at a time, each with its length before it. RFC 7766."""

    def __init__(self, responder: Responder, fd: int) -> None:
        self.fd = fd
        self._responder = responder
        self._client = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
        self._client.setblocking(False)
        self._upstream: _socket.socket | None = None
        self._server = 0
        self._in = self._out = self._answer = b""
        self._query = b""
        self._question: dns.Question | None = None
        self._id = 0
        responder.watch(fd, select.EPOLLIN, self._hear)

    def close(self) -> None:
        """End it."""
        self._hang_up()
        self._responder.forget(self.fd)
        self._responder.ended(self)
        self._client.close()

    def _hear(self, _: int) -> None:
        try:
            piece = self._client.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return
        self._in += piece
        self._next()

    def _next(self) -> None:
        """Take up the next whole question."""
        query, self._in = _whole(self._in)
        if query is None:
            self._responder.watch(self.fd, select.EPOLLIN, self._hear)
            return
        reply, question = self._responder.local(query, _MESSAGE_MAX)
        if reply is None:
            self._query, self._question, self._server = query, question, 0
            # Nothing is read meanwhile: a client that sends on waits in its own buffer.
            self._responder.watch(self.fd, 0, self._hear)
            self._call()
        elif reply:
            self._say(reply)
        else:
            self.close()

    def _say(self, message: bytes) -> None:
        self._out = len(message).to_bytes(2, "big") + message
        self._responder.watch(self.fd, select.EPOLLOUT, self._tell)

    def _tell(self, _: int) -> None:
        try:
            self._out = self._out[self._client.send(self._out) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._out:
            self._next()

    def _call(self) -> None:
        host, port = self._responder.server(self._server)
        self._upstream = upstream = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _STREAM)
        self._id, self._answer = int.from_bytes(os.urandom(2), "big"), b""
        self._responder.watch(upstream.fileno(), select.EPOLLOUT, self._ask)
        try:
            upstream.connect((host, port))
        except BlockingIOError:
            return
        except OSError:
            self._fail()

    def _ask(self, _: int) -> None:
        assert self._upstream is not None
        query = dns.with_id(self._query, self._id)
        try:
            # A fresh connection's buffer holds more than the largest message.
            self._upstream.send(len(query).to_bytes(2, "big") + query)
        except OSError:
            self._fail()
            return
        self._responder.watch(self._upstream.fileno(), select.EPOLLIN, self._listen)

    def _listen(self, _: int) -> None:
        assert self._upstream is not None
        assert self._question is not None
        try:
            piece = self._upstream.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._answer += piece
        message, _rest = _whole(self._answer)
        if message is not None and dns.fits(message, self._id, self._question):
            self._hang_up()
            self._say(dns.with_id(message, self._question.id))
        elif message is not None or not piece:
            self._fail()

    def _fail(self) -> None:
        """The server did not do: the next one, or say so after the last."""
        assert self._question is not None
        self._hang_up()
        self._server += 1
        if self._responder.has_server(self._server):
            self._call()
        else:
            self._say(dns.answer(self._question, [], dns.SERVFAIL))

    def _hang_up(self) -> None:
        if self._upstream is not None:
            self._responder.forget(self._upstream.fileno())
            self._upstream.close()
            self._upstream = None


def _whole(data: bytes) -> tuple[bytes | None, bytes]:
    """The first whole message of a stream and the rest; None while it is not whole."""
    length = int.from_bytes(data[:2], "big")
    if len(data) < 2 or len(data) < 2 + length:
        return None, data
    return data[2 : 2 + length], data[2 + length :]
