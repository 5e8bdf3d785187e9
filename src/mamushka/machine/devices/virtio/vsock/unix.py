"""Vsock behind Unix sockets, as users of Firecracker know it: programs of the host need nothing of ours.

    host to guest   connect to PATH, write "CONNECT port" and a line feed; "OK port" comes back, then the stream
    guest to host   a connection to CID 2, port N, goes to the Unix socket PATH_N, where somebody listens; or is refused

Who may connect is a matter of the directory's permissions: PATH itself is made for its owner alone.
"""

from __future__ import annotations

import _socket
import os

from mamushka import trace
from mamushka.errors import Unavailable
from mamushka.machine.devices.virtio.vsock.bridge import Bridge
from mamushka.machine.devices.virtio.vsock.connection import Connection, Endpoint
from mamushka.machine.devices.virtio.vsock.vsock import ANY, Vsock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.loop import Loop

BACKLOG = 64  # that wait to be accepted, or have not said yet where to: each costs a descriptor
LINE_MAX = 32  # "CONNECT 4294967295" and its end
PORT_MAX = 0xFFFFFFFE  # the last is VMADDR_PORT_ANY

_FLAGS = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK


class UnixSide:
    """Joins a machine's vsock to Unix sockets at PATH and PATH_port. Owns PATH. Loop's thread only, once it runs."""

    def __init__(self, loop: Loop, vsock: Vsock, path: str) -> None:
        """Listen at ``path`` for the host, and for all ports of the guest's that nobody listens to otherwise.

        OSError where the path is taken or too long (107 bytes); Conflict where the device has a listener for ``ANY``.
        """
        self._loop, self._vsock, self.path = loop, vsock, path
        self._asking: set[_Asking] = set()
        vsock.listen(ANY, self._accept)
        self._listener = _socket.socket(_socket.AF_UNIX, _FLAGS)
        try:
            self._bind()
        except OSError:
            self.close()
            raise
        loop.watch(self._listener.fileno(), self._arrived)

    def _bind(self) -> None:
        before = os.umask(0o177)
        try:
            self._listener.bind(self.path)
        finally:
            os.umask(before)
        self._listener.listen(BACKLOG)

    def close(self) -> None:
        """Listen no more, in either direction; connections that are there stay."""
        self._vsock.unlisten(ANY)
        for asking in tuple(self._asking):
            asking.refuse()
        fd = self._listener.fileno()
        if fd >= 0:
            self._loop.forget(fd)
            if self._listener.getsockname():
                os.unlink(self.path)
            self._listener.close()

    # From the guest

    def _accept(self, connection: Connection) -> None:
        peer = _socket.socket(_socket.AF_UNIX, _FLAGS)
        try:
            peer.connect(f"{self.path}_{connection.host_port}")
        except OSError as error:  # nobody listens, or does not accept what waits already
            trace.event("vsock.refused", port=connection.host_port, error=str(error))
            peer.close()
            connection.reset()
            return
        fd = peer.detach()
        Bridge(self._loop, connection, reading=fd, writing=fd)

    # From the host

    def _arrived(self, _events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        except OSError:  # it has gone again, or descriptors are short: whoever waits, waits on
            return
        os.set_blocking(fd, False)
        if len(self._asking) >= BACKLOG:
            os.close(fd)
            return
        self._asking.add(_Asking(self._loop, self._vsock, fd, self._asking))


class _Asking(Endpoint):
    """Somebody who has not been connected yet."""

    def __init__(self, loop: Loop, vsock: Vsock, fd: int, among: set[_Asking]) -> None:
        self._loop, self._vsock, self._among = loop, vsock, among
        self._socket = _socket.socket(fileno=fd)
        self._connection: Connection | None = None
        self._line = bytearray()
        loop.watch(fd, self._read)

    def _read(self, _events: int) -> None:
        """Take the line and nothing behind it, which is the guest's."""
        try:
            seen = self._socket.recv(LINE_MAX - len(self._line), _socket.MSG_PEEK)
            end = seen.find(b"\n") + 1
            self._line += self._socket.recv(end or len(seen))
        except BlockingIOError:
            return
        except OSError:
            seen, end = b"", 0
        if end:
            self._ask(parse(self._line))
        elif not seen or len(self._line) >= LINE_MAX:
            self.refuse()

    def _ask(self, port: int) -> None:
        self._loop.forget(self._socket.fileno())
        try:
            if port < 0:
                raise Unavailable("not a line that says where to")
            self._connection = self._vsock.connect(port)
        except Unavailable as error:
            trace.event("vsock.refused", port=port, error=str(error))
            self.refuse()
            return
        self._connection.endpoint = self

    def opened(self) -> None:
        """The guest has accepted: say so, and step out of the way."""
        assert self._connection is not None
        try:
            self._socket.send(b"OK %d\n" % self._connection.host_port)
        except OSError:
            self._connection.reset()
            self.refuse()
            return
        self._among.discard(self)
        fd = self._socket.detach()
        Bridge(self._loop, self._connection, reading=fd, writing=fd)

    def reset(self) -> None:
        """The guest has not."""
        self.refuse()

    def refuse(self) -> None:
        """Hang up, and on the guest where it was asked already."""
        self._among.discard(self)
        fd = self._socket.fileno()
        if fd >= 0:
            self._loop.forget(fd)
            self._socket.close()
        if self._connection is not None:
            self._connection.reset()


def parse(line: bytes | bytearray) -> int:
    """The port in ``CONNECT port``, with its line feed; -1 where it is anything else."""
    word, _, number = bytes(line).removesuffix(b"\n").removesuffix(b"\r").partition(b" ")
    if word != b"CONNECT" or not number.isdigit() or not 0 <= int(number) <= PORT_MAX:
        return -1
    return int(number)
