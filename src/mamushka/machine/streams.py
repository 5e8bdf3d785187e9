"""A vsock connection as the agent's channel wants one: what is sent is kept until the guest takes it."""

from __future__ import annotations

from mamushka.machine.devices.virtio.vsock import Connection, Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.agent.channel import Peer


class VsockStream(Endpoint):
    """All calls in the loop's thread. See ``agent.channel.Connection``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._peer: Peer | None = None
        self._left = bytearray()
        self._unread = 0  # received while held: the guest gets no credit for it
        self._held = self._shut = self._over = False
        connection.endpoint = self

    @property
    def pending(self) -> int:
        """Bytes that the connection has not accepted yet."""
        return len(self._left)

    def attach(self, peer: Peer) -> None:
        """Tell this one from now on."""
        self._peer = peer

    def send(self, data: bytes | memoryview) -> None:
        """Send, or keep a copy."""
        if not self._over:
            self._left += data
            self._flush()

    def hold(self, held: bool) -> None:
        """While held, the guest gets no further credit."""
        self._held = held
        if not held:
            count, self._unread = self._unread, 0
            self._connection.consumed(count)

    def shutdown(self) -> None:
        """Nothing more will be sent, once what is kept has been."""
        self._shut = True
        self._flush()

    def close(self) -> None:
        """Forget it; no call to the peer follows."""
        self._over, self._peer = True, None
        self._left.clear()
        self._connection.close()

    def _flush(self) -> None:
        if self._left:
            del self._left[: self._connection.send(self._left)]
        if self._shut and not self._left and not self._over:
            self._shut = False
            self._connection.shutdown()

    # What the connection tells

    def received(self, view: memoryview) -> None:
        """The peer copies what it keeps."""
        self._unread += len(view)
        if self._peer is not None:
            self._peer.received(view)

    def flushed(self) -> None:
        """The batch is over."""
        if not self._held:
            self.hold(False)

    def writable(self) -> None:
        """There is room again."""
        self._flush()
        if not self._left and self._peer is not None:
            self._peer.writable()

    def ended(self) -> None:
        """The guest sends no more."""
        if self._peer is not None:
            self._peer.ended()

    def stopped(self) -> None:
        """The guest receives no more."""
        self._over = True
        self._left.clear()

    def reset(self) -> None:
        """Both at once."""
        self.stopped()
        self.ended()
