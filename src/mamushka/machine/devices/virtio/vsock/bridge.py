"""A connection joined to descriptors of the host: pipes, a terminal, a socket, a file. How a process's stdio travels.

    guest -> received (views, no copy) -> flushed: one writev -> descriptor; what it does not take waits here, and is
             not consumed, so the guest runs out of credit
    guest <- send (accepts what there is room for) <- read <- descriptor; not read while there is no room

Each end passes on what the other does: an end of the guest's stream closes a pipe or shuts a socket's sending down, an
end of the descriptor is half a close for the guest; a descriptor that nobody reads makes the guest's writes fail, and a
guest that has stopped receiving the host's. Nothing waits, and nothing is watched that cannot move.
"""

from __future__ import annotations

import _socket
import os
import select

from mamushka.machine.devices.virtio.vsock.connection import Connection, Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.loop import Loop

READ_MAX = 64 * 1024  # what one read asks for: a pipe's whole buffer
WRITE_MAX = 64 * 1024  # what one write of what waits offers
WRITE_SHARED = 4096  # PIPE_BUF: what a descriptor that is ready takes without making us wait
IOV_MAX = 1024  # views that one writev takes

_GONE = select.EPOLLHUP | select.EPOLLERR
_S_IFMT, _S_IFSOCK = 0o170000, 0o140000


class _Descriptor:
    """A descriptor, and whether we want to know when it can be read, or written. Owns it."""

    def __init__(self, loop: Loop, fd: int, events: int, ready: Callable[[int], None]) -> None:
        self.fd = fd
        self._loop, self._events, self._ready = loop, events, ready
        self._always = -1  # what is watched in place of a file, which epoll refuses: files are always ready
        self._wanted = False

    def want(self, wanted: bool) -> None:
        """Call ``ready`` while it can be read or written, or no more."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if not wanted:
            self._loop.forget(self.fd if self._always < 0 else self._always)
        elif self._always < 0:
            try:
                self._loop.watch(self.fd, self._ready, self._events)
            except PermissionError:
                self._always = os.eventfd(1, os.EFD_CLOEXEC)
                self._loop.watch(self._always, self._ready)
        else:
            self._loop.watch(self._always, self._ready)

    def close(self) -> None:
        """Half of a socket is shut down: there may be another descriptor for it. Harmless the second time."""
        if self.fd < 0:
            return
        self.want(False)
        if os.fstat(self.fd).st_mode & _S_IFMT == _S_IFSOCK:
            half = _socket.socket(fileno=self.fd)
            try:
                half.shutdown(_socket.SHUT_RD if self._events == select.EPOLLIN else _socket.SHUT_WR)
            except OSError:
                pass  # the other end has gone already
            half.detach()
        os.close(self.fd)
        if self._always >= 0:
            os.close(self._always)
        self.fd = -1


class _Outward:
    """What the guest sends, to a descriptor."""

    def __init__(self, loop: Loop, connection: Connection, fd: int, shared: bool, over: Callable[[], None]) -> None:
        self._descriptor = _Descriptor(loop, fd, select.EPOLLOUT, self._drain)
        self._connection, self._shared, self._over = connection, shared, over
        self._backlog = bytearray()  # what the descriptor has not taken; BUFFER at most, for want of credit
        self._ended = False

    @property
    def done(self) -> bool:
        return self._descriptor.fd < 0

    def put(self, views: list[memoryview]) -> None:
        """Write a batch, behind what waits; keep what is not taken."""
        if self.done:
            return
        # A shared descriptor could make us wait: it is only written when epoll says that it is ready.
        taken = 0 if self._backlog or self._shared else self._write(views[:IOV_MAX])
        if taken < 0:
            self._fail()
            return
        for view in views:
            if taken < len(view):
                self._backlog += view[taken:]
            taken = max(0, taken - len(view))
        self._descriptor.want(bool(self._backlog))

    def end(self) -> None:
        """Nothing follows what came."""
        self._ended = True
        if not self._backlog:
            self.close()

    def close(self) -> None:
        """What waits is lost."""
        if not self.done:
            self._backlog.clear()
            self._descriptor.close()
            self._over()

    def _drain(self, events: int) -> None:
        taken = self._write([memoryview(bytes(self._backlog[: WRITE_SHARED if self._shared else WRITE_MAX]))])
        if taken < 0 or (taken == 0 and events & _GONE):
            self._fail()
            return
        del self._backlog[:taken]
        if not self._backlog:
            self._descriptor.want(False)
            if self._ended:
                self.close()

    def _write(self, views: list[memoryview]) -> int:
        """How much was taken; below zero where nobody will ever take anything."""
        try:
            count = os.writev(self._descriptor.fd, views)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        self._connection.consumed(count)
        return count

    def _fail(self) -> None:
        self._connection.shutdown(send=False, receive=True)
        self.close()


class _Inward:
    """What a descriptor gives, to the guest."""

    def __init__(self, loop: Loop, connection: Connection, fd: int, shared: bool, over: Callable[[], None]) -> None:
        self._descriptor = _Descriptor(loop, fd, select.EPOLLIN, self.get)
        self._connection, self._shared, self._over = connection, shared, over

    @property
    def done(self) -> bool:
        return self._descriptor.fd < 0

    def get(self, _events: int = 0) -> None:
        """Read all that is there and that the guest can be sent; look again when either changes."""
        while not self.done and (room := min(self._connection.room, READ_MAX)):
            try:
                data = os.read(self._descriptor.fd, room)
            except BlockingIOError:
                break
            except OSError:  # EIO: the last process has closed the terminal; ECONNRESET
                data = b""
            if not data:
                self._connection.shutdown()
                self.close()
                return
            self._connection.send(data)
            if self._shared:
                break  # another read could wait
        if not self.done:
            self._descriptor.want(self._connection.room > 0)

    def start(self) -> None:
        """Look at it from the loop's next round on."""
        self._descriptor.want(not self.done and self._connection.room > 0)

    def close(self) -> None:
        """Read no more."""
        if not self.done:
            self._descriptor.close()
            self._over()


class Bridge(Endpoint):
    """Moves bytes between a connection and descriptors until both directions have ended. Loop's thread only."""

    def __init__(
        self,
        loop: Loop,
        connection: Connection,
        *,
        reading: int = -1,
        writing: int = -1,
        shared: bool = False,
        closed: Callable[[bool], None] | None = None,
    ) -> None:
        """Join them: the connection's endpoint is this one from now on, and the descriptors belong to it.

        ``reading`` is where bytes for the guest come from, ``writing`` where the guest's go to; the same one may be
        both (a socket, a terminal's master). Without ``reading`` the guest reads an end at once; without ``writing``
        its writes fail. Each is closed when its direction has ended.

        ``shared``: others use the same open files (a terminal that we were started from), so they are not made
        non-blocking and move less at a time. ``closed`` is called once at the end, with whether the connection broke;
        what the guest had sent before that has been written then.
        """
        self._connection, self._closed = connection, closed
        self._batch: list[memoryview] = []
        self._broken = False
        for fd in {reading, writing} - {-1}:
            if not shared:
                os.set_blocking(fd, False)
        if reading == writing >= 0:
            writing = os.dup(reading)  # each direction watches, and closes, one of its own
        self._inward = _Inward(loop, connection, reading, shared, self._half)
        self._outward = _Outward(loop, connection, writing, shared, self._half)
        connection.endpoint = self
        if reading < 0 or writing < 0:
            connection.shutdown(send=reading < 0, receive=writing < 0)
        self._inward.start()

    def close(self) -> None:
        """Stop: what waits for a descriptor is lost, what the guest was to get is sent; ``closed`` is called."""
        self._inward.close()
        self._outward.close()

    def _half(self) -> None:
        if self._inward.done and self._outward.done:
            self._connection.close()
            closed, self._closed = self._closed, None
            if closed is not None:
                closed(self._broken)

    # What the connection tells

    def received(self, view: memoryview) -> None:
        """Gather it for one writev."""
        self._batch.append(view)

    def flushed(self) -> None:
        """Write the batch."""
        batch, self._batch = self._batch, []
        self._outward.put(batch)

    def ended(self) -> None:
        """The guest sends no more."""
        self._outward.end()

    def writable(self) -> None:
        """Read on."""
        self._inward.get()

    def stopped(self) -> None:
        """The guest receives no more."""
        self._inward.close()

    def reset(self) -> None:
        """What came before is still written."""
        self._broken = True
        self._inward.close()
        self._outward.end()
