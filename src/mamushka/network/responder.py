"""The resolver of a workload in user-made networks: its neighbours' names from files, all others from the host's.

It listens at 127.0.0.11 inside the workload's namespace, at ports of its own to which the namespace's filter
leads port 53; so the workload may have a name server itself. It asks from the host's namespace, where it
runs, and reaches resolvers that the workload would not. It is one descriptor, an epoll, in whichever loop it
takes part in, and it has no clock: a client that hears nothing asks again, and then the next server is asked.
"""

from __future__ import annotations

import _socket
import os
import select

from mamushka import document
from mamushka.errors import Invalid
from mamushka.linux import nftables as nft
from mamushka.network import dns
from mamushka.network.address import pack
from mamushka.network.names import RESPONDER
from mamushka.network.namespace import Entered
from mamushka.network.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PORT = 53
# A workload with so many questions open at once is a flood: the oldest is given up for the newest.
PENDING_MAX = 128
SESSIONS_MAX = 32
# One turn of the loop answers at most so many, so that a flood does not keep the shim from its other work.
_TURN_MAX = 32
_MESSAGE_MAX = 65535
_TABLE = "mamushka"
_STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
_DATAGRAM = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC


def listen(namespace: int) -> tuple[int, int]:
    """Descriptors (close-on-exec) of a UDP and a TCP socket inside, to which port 53 is led."""
    with Entered(namespace):
        datagrams = _socket.socket(_socket.AF_INET, _DATAGRAM)
        streams = _socket.socket(_socket.AF_INET, _STREAM)
        filter = nft.Nftables()
    with filter:
        datagrams.bind((RESPONDER, 0))
        streams.bind((RESPONDER, 0))
        streams.listen(SESSIONS_MAX)
        chain = nft.new_chain(_TABLE, "output", kind="nat", hook=nft.LOCAL_OUT, priority=nft.PRIORITY_DSTNAT)
        rules = (
            _lead(_socket.IPPROTO_UDP, datagrams.getsockname()[1]),
            _lead(_socket.IPPROTO_TCP, streams.getsockname()[1]),
        )
        filter.commit([nft.new_table(_TABLE), chain, *(nft.new_rule(_TABLE, "output", rule) for rule in rules)])
    return datagrams.detach(), streams.detach()


def ask(namespace: int, streams: int) -> tuple[int, ...]:
    """Sockets (non-blocking, close-on-exec) for whoever answers for names in there, ours or another engine's.

    First one for datagrams, connected to it, then so many for streams, which are not; none where its loopback is down.
    """
    with Entered(namespace):
        datagrams = _socket.socket(_socket.AF_INET, _DATAGRAM)
        further = [_socket.socket(_socket.AF_INET, _STREAM) for _ in range(streams)]
    try:
        datagrams.connect((RESPONDER, PORT))
    except OSError:
        for socket in (datagrams, *further):
            socket.close()
        return ()
    return tuple(socket.detach() for socket in (datagrams, *further))


def _lead(protocol: int, port: int) -> bytes:
    """Our address's port 53 to ``port``."""
    family = nft.meta(nft.META_NFPROTO) + nft.compare(bytes([nft.NFPROTO_IPV4]))
    destination = nft.payload(nft.NETWORK_HEADER, 16, 4) + nft.compare(pack(RESPONDER))
    kind = nft.meta(nft.META_L4PROTO) + nft.compare(bytes([protocol]))
    service = nft.payload(nft.TRANSPORT_HEADER, 2, 2) + nft.compare(PORT.to_bytes(2, "big"))
    target = nft.immediate(nft.REGISTER, pack(RESPONDER)) + nft.immediate(nft.REGISTER + 1, port.to_bytes(2, "big"))
    return family + destination + kind + service + target + nft.dnat(nft.NFPROTO_IPV4, nft.REGISTER, nft.REGISTER + 1)


class Book:
    """The directory of a workload, read again when something has been replaced.

    ``index`` is a file that lists files, one for each network the workload is in; those list members.
    """

    def __init__(self, index: str) -> None:
        self._index = index
        self._paths: list[str] = []
        self._seen: list[tuple[int, int]] = []
        self._directory = dns.Directory()

    def directory(self) -> dns.Directory:
        """As of now."""
        seen = [_version(path) for path in (self._index, *self._paths)]
        if seen != self._seen:
            self._paths = list(_read(self._index))
            self._seen = [_version(path) for path in (self._index, *self._paths)]
            self._directory = directory = dns.Directory()
            for path in self._paths:
                for member in _read(path):
                    directory.add(member["names"], [pack(address) for address in member["addresses"]])
        return self._directory


def _read(path: str) -> list[Any]:
    try:
        with open(path, "rb") as file:
            entries: list[Any] = document.parse(file.read(document.SIZE_MAX + 1), path)
            return entries
    except FileNotFoundError:  # the network, or the workload, was removed
        return []


def _version(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


class _Asked:
    """A datagram that was passed on to a server, and who waits for the answer."""

    __slots__ = ("client", "id", "query", "question", "server", "socket")

    def __init__(self, query: bytes, question: dns.Question, client: tuple[str, int], server: int) -> None:
        self.query, self.question, self.client, self.server = query, question, client, server
        self.id = int.from_bytes(os.urandom(2), "big")  # with the random port, what a forger would have to guess
        self.socket: _socket.socket | None = None


class Responder:
    """Answers and passes on. ``datagrams`` and ``streams`` are the descriptors of ``listen``, owned from now on."""

    def __init__(self, datagrams: int, streams: int, index: str, servers: Sequence[str]) -> None:
        self._book = Book(index)
        self._servers = servers
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._pending: dict[int, _Asked] = {}  # by the socket's descriptor, oldest first
        self._sessions: dict[int, Session] = {}  # by the client's descriptor, oldest first
        self._datagrams = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0, datagrams)
        self._streams = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, streams)
        self.watch(datagrams, select.EPOLLIN, self._hear)
        self.watch(streams, select.EPOLLIN, self._accept)

    def fileno(self) -> int:
        """Readable when ``ready`` has something to do."""
        return self._epoll.fileno()

    def ready(self, _: int = -1) -> None:
        """Do what there is to do, without waiting."""
        for fd, events in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer; then another responder may take over the two descriptors."""
        return not self._pending and not self._sessions

    def close(self) -> None:
        """Close every descriptor."""
        for session in list(self._sessions.values()):
            session.close()
        for fd in list(self._pending):
            self._drop(fd)
        for resource in (self._datagrams, self._streams, self._epoll):
            resource.close()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back when a descriptor is ready, from now on for these events."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """No longer, before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def local(self, query: bytes, limit: int) -> tuple[bytes | None, dns.Question | None]:
        """What we can say ourselves; no bytes where the question is for a server."""
        try:
            question = dns.parse(query)
        except Invalid:
            return dns.malformed(query), None
        if not dns.is_query(question):
            return (b"" if question.flags & 0x8000 else dns.answer(question, [], dns.NOTIMP)), question
        records = self._book.directory().find(question)
        if records is not None:
            return dns.answer(question, records, limit=limit), question
        if not self._servers:
            return dns.answer(question, [], dns.REFUSED), question
        return None, question

    def server(self, number: int) -> tuple[str, int]:
        """A server's address; after the last one comes the first again."""
        return self._servers[number % len(self._servers)], PORT

    def has_server(self, number: int) -> bool:
        """Whether there is one of that number."""
        return number < len(self._servers)

    def ended(self, session: Session) -> None:
        """A session has closed itself."""
        self._sessions.pop(session.fd, None)

    # datagrams

    def _hear(self, _: int) -> None:
        for _ in range(_TURN_MAX):
            try:
                query, client = self._datagrams.recvfrom(_MESSAGE_MAX)
            except BlockingIOError:
                return
            reply, question = self.local(query, dns.UDP_MAX)
            if reply is None:
                assert question is not None
                self._pass_on(query, question, client)
            elif reply:
                self._reply(reply, client)

    def _reply(self, message: bytes, client: tuple[str, int]) -> None:
        try:
            self._datagrams.sendto(message, client)
        except OSError:  # nobody there any more, or no room: the client asks again
            return

    def _pass_on(self, query: bytes, question: dns.Question, client: tuple[str, int]) -> None:
        again = [(fd, asked) for fd, asked in self._pending.items() if asked.client == client and asked.query == query]
        for fd, _ in again:
            self._drop(fd)
        self._ask(_Asked(query, question, client, again[0][1].server + 1 if again else 0))

    def _ask(self, asked: _Asked) -> None:
        """Ask the server whose turn it is; on a refusal at once the next, until each was asked."""
        while len(self._pending) >= PENDING_MAX:
            self._drop(next(iter(self._pending)))
        host, port = self.server(asked.server)
        socket = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _DATAGRAM)
        asked.socket = socket
        self._pending[socket.fileno()] = asked
        self.watch(socket.fileno(), select.EPOLLIN, lambda _: self._answered(asked))
        try:
            socket.connect((host, port))
            socket.send(dns.with_id(asked.query, asked.id))
        except OSError:
            self._refused(asked)

    def _answered(self, asked: _Asked) -> None:
        assert asked.socket is not None
        try:
            message = asked.socket.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._refused(asked)
            return
        if dns.fits(message, asked.id, asked.question):
            self._drop(asked.socket.fileno())
            self._reply(dns.with_id(message, asked.question.id), asked.client)

    def _refused(self, asked: _Asked) -> None:
        assert asked.socket is not None
        self._drop(asked.socket.fileno())
        if self.has_server(asked.server + 1):
            asked.server += 1
            self._ask(asked)
        else:
            self._reply(dns.answer(asked.question, [], dns.SERVFAIL), asked.client)

    def _drop(self, fd: int) -> None:
        asked = self._pending.pop(fd)
        self.forget(fd)
        if asked.socket is not None:
            asked.socket.close()

    # streams

    def _accept(self, _: int) -> None:
        try:
            fd, _address = self._streams._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        if len(self._sessions) >= SESSIONS_MAX:
            next(iter(self._sessions.values())).close()
        self._sessions[fd] = Session(self, fd)
