"""The vsock device: sockets between programs in the guest and the monitor itself. VIRTIO 1.2, section 5.10.

It is no vhost back end: whoever listens is a function in the loop's thread, so a clone of a machine has streams of its
own under the same context identifier (CID), and a stream can survive a save and restore.

    vsock = Vsock()
    vsock.listen(1024, accept)               the guest connects to CID 2, port 1024: accept(connection)
    connection = vsock.connect(52)           to a program that listens in the guest
    connection.endpoint = Bridge(loop, connection, reading=fd, writing=fd)

What the guest can make us hold: ``CONNECTIONS`` of ``BUFFER`` and ``SEND_MAX`` bytes each at most, and ``RESETS``
refusals; while those are not taken from us we take nothing more from the guest (5.10.6.1.2), except that what is left
in its ring is the guest's own memory. A turn in the loop ends after ``TURN`` packets, so a flood starves nobody.
"""

from __future__ import annotations

import os
from collections import deque
from struct import Struct

from mamushka import trace
from mamushka.errors import Conflict, GuestFault, Unavailable
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.vsock.connection import ASKING, CLOSING, OPEN, Connection
from mamushka.machine.devices.virtio.vsock.packet import (
    HEADER,
    HOST,
    LENGTH_MAX,
    REQUEST,
    RST,
    RW,
    STREAM,
    TRANSPORT_RESET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop

ANY = -1  # VMADDR_PORT_ANY: a listener for the ports that have none of their own

CONNECTIONS = 512  # of each machine, in both directions: 192 MiB if a guest does its worst
RESETS = 256  # as many as the ring has descriptors: no guest waits for more answers at once
TURN = 512  # packets in each direction, before other devices have their turn
EPHEMERAL = 1 << 30  # our own ports when we connect begin here, far from those that people listen on

RX, TX, EVENT = 0, 1, 2

_PORTS = Struct("<II")


class Vsock(Device):
    """Streams between the guest and listeners in this process. VIRTIO 1.2, section 5.10."""

    device_id = 19
    queues = ("rx", "tx", "event")
    features = 1  # VIRTIO_VSOCK_F_STREAM

    def __init__(self, cid: int = 3) -> None:
        """``cid`` is the guest's; machines have nothing to do with each other, so all can have the same."""
        self.cid = cid
        self.started: tuple[Queue, ...] = ()
        self._listeners: dict[int, Callable[[Connection], None]] = {}
        self._expected: dict[str, Callable[[Connection], None]] = {}
        self._connections: dict[tuple[int, int], Connection] = {}
        self._ready: deque[Connection] = deque()  # those with something to send
        self._touched: list[Connection] = []  # those that received something in this batch
        self._resets: deque[tuple[int, int, int, int]] = deque()  # CID and port of ours and of the guest's
        self._serving = False
        self._event_due = False
        self._loop: Loop | None = None
        self._again = -1  # an eventfd: somebody has something to send, or a turn was too long
        self._poked = False
        self._next_port = EPHEMERAL

    # For those who want streams; in the loop's thread (``Loop.call``), or before it starts

    def listen(self, port: int, accept: Callable[[Connection], None]) -> None:
        """Call ``accept`` for each connection of the guest's to this port of CID 2; ``ANY``: to any without a listener.

        ``accept`` sets ``connection.endpoint`` and may send at once; or refuses by ``connection.reset()``. It must not
        wait. What it raises ends the machine. Conflict where somebody listens already.
        """
        if port in self._listeners:
            raise Conflict(f"port {port} of the machine's vsock has a listener already")
        self._listeners[port] = accept

    def unlisten(self, port: int) -> None:
        """Listen no more; connections stay. Harmless where nobody listens."""
        self._listeners.pop(port, None)

    def connect(self, port: int) -> Connection:
        """Ask for a connection to a port in the guest; ``endpoint.opened`` or ``endpoint.reset`` tells the answer.

        What is sent before that waits. Unavailable where the driver is not there, or there are too many connections.
        """
        if not self.started or len(self._connections) >= CONNECTIONS:
            raise Unavailable(f"cannot connect to port {port} in the guest: it has no driver for vsock, or no room")
        while True:
            ours, self._next_port = self._next_port, self._next_port + 1 & 0x7FFFFFFF | EPHEMERAL
            if (ours, port) not in self._connections:
                break
        connection = self._connections[ours, port] = Connection(self, ours, port, ASKING)
        self.wake(connection)
        return connection

    def expect(self, name: str, take: Callable[[Connection], None]) -> None:
        """Before a restore: call ``take`` for each connection that was saved under this name, when the device starts.

        It sets ``connection.endpoint``, as ``accept`` does. Those that nobody takes are reset.
        """
        self._expected[name] = take

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All that there are now."""
        return tuple(self._connections.values())

    # What the transport calls

    def config(self) -> bytes:
        """guest_cid. 5.10.4."""
        return self.cid.to_bytes(8, "little")

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Serve what is in the rings already: after a restore no doorbell rings again."""
        for connection in self.connections:
            self.wake(connection)
            if connection.state != CLOSING:
                self._hand_over(connection)
        self._again = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.started, self._loop = tuple(queues), loop
        self._poked = True
        loop.watch(self._again, self._poked_on)

    def _hand_over(self, connection: Connection) -> None:
        """It was restored."""
        take = self._expected.get(connection.name)
        if take is not None:
            take(connection)
        if not connection.attended:
            connection.reset()

    def notify(self, index: int) -> None:
        """Packets of the guest's, room for ours, or a place for an event."""
        self._serve()

    def stop(self) -> None:
        """Every connection is lost; listeners stay for the next driver."""
        self.started = ()
        for connection in self.connections:
            connection.lost()
        self._resets.clear()
        self._ready.clear()
        self._event_due = False
        if self._again >= 0:
            assert self._loop is not None
            self._loop.forget(self._again)
            os.close(self._again)
            self._again = -1

    def close(self) -> None:
        """Nothing of the host's is left."""
        self.stop()

    # What connections call

    def wake(self, connection: Connection) -> None:
        """It has something to send: when the present batch is over, or in the loop's next round."""
        if not connection.queued:
            connection.queued = True
            self._ready.append(connection)
        self._poke()

    def drop(self, connection: Connection, *, answer: bool) -> None:
        """It is closed."""
        self._connections.pop((connection.host_port, connection.guest_port), None)
        if answer:
            self._resets.append((HOST, connection.host_port, self.cid, connection.guest_port))
            self._poke()

    # Serving

    def _poke(self) -> None:
        """Serve in the loop's next round: never from within a call of an owner's, who may have more to send."""
        if not self._serving and not self._poked and self.started:
            self._poked = True
            os.eventfd_write(self._again, 1)

    def _poked_on(self, _events: int) -> None:
        os.eventfd_read(self._again)
        self._poked = False
        self._serve()

    def _serve(self) -> None:
        """One turn: all that the guest sent, all that it has room for, and at most one interrupt for each ring."""
        if not self.started:
            return
        self._serving = True
        try:
            self._event()
            taken = self._take()
            delivered = self._deliver()
            rest = not delivered or (not taken and len(self._resets) < RESETS)
        finally:
            self._serving = False
        for queue in self.started:
            queue.signal()
        if rest:
            self._poke()

    def _event(self) -> None:
        """Tell the driver that all connections are gone, once it has a buffer for it. 5.10.6.7."""
        if self._event_due and (chain := self.started[EVENT].pop()) is not None:
            self.started[EVENT].push(chain, chain.fill(TRANSPORT_RESET))
            self._event_due = False

    def _take(self) -> bool:
        """What the guest sent; the chains are given back together, so that endpoints can keep views for a batch.

        False where something is left: the turn was long enough, or ``RESETS`` refusals wait for room.
        """
        queue = self.started[TX]
        chains: list[Chain] = []
        while len(chains) < TURN and len(self._resets) < RESETS:
            chain = queue.pop()
            if chain is None:
                break
            chains.append(chain)
            self._packet(chain)
        touched, self._touched = self._touched, []
        for connection in touched:
            connection.touched = False
            connection.endpoint.flushed()
        queue.push_together((chain, 0) for chain in chains)
        return len(chains) < TURN and len(self._resets) < RESETS

    def _packet(self, chain: Chain) -> None:
        fields = HEADER.unpack(chain.take(HEADER.size))
        source, target, theirs, ours, length, kind, op, flags, alloc, forwarded = fields
        if length > LENGTH_MAX:
            raise GuestFault(f"a vsock packet of {length} bytes: the most is {LENGTH_MAX}")
        if source != self.cid:
            trace.event("vsock.stranger", cid=source)  # 5.10.6.3: it must not pass itself off as somebody else
            return
        connection = self._connections.get((ours, theirs)) if target == HOST and kind == STREAM else None
        if connection is not None:
            payload = _behind(chain.readable, length) if op == RW else []
            connection.arrived(op, flags, alloc, forwarded, payload, length)
            if connection.touched and connection not in self._touched:
                self._touched.append(connection)
        elif op == REQUEST and target == HOST and kind == STREAM and self._accept(ours, theirs, alloc, forwarded):
            pass
        elif op != RST:
            self._resets.append((target, ours, source, theirs))

    def _accept(self, ours: int, theirs: int, alloc: int, forwarded: int) -> bool:
        accept = self._listeners.get(ours) or self._listeners.get(ANY)
        if accept is None or len(self._connections) >= CONNECTIONS:
            return False
        connection = self._connections[ours, theirs] = Connection(self, ours, theirs, OPEN)
        connection.asked(alloc, forwarded)
        self.wake(connection)
        accept(connection)
        return True

    def _deliver(self) -> bool:
        """What the guest has room for, one packet of each connection in turn. False where the turn was long enough."""
        queue = self.started[RX]
        for _ in range(TURN):
            if not self._resets and not self._ready:
                return True
            chain = queue.pop()
            if chain is None:
                return True
            written = self._fill(chain)
            if not written:
                queue.unpop()
                return True
            queue.push(chain, written)
        return False

    def _fill(self, chain: Chain) -> int:
        """Write one packet; how many bytes it takes, zero where nobody has anything to send."""
        room = min(chain.writable_length - HEADER.size, LENGTH_MAX)
        if room < 0:
            raise GuestFault(f"a buffer of {room + HEADER.size} bytes for a vsock packet: the header takes more")
        if self._resets:
            cid, ours, guest, theirs = self._resets.popleft()
            return chain.fill(HEADER.pack(cid, guest, ours, theirs, 0, STREAM, RST, 0, 0, 0))
        while self._ready:
            connection = self._ready.popleft()
            op, flags, count = connection.next_packet(room)
            if op:
                self._write(chain, connection, op, flags, count)
                self._ready.append(connection)
                return HEADER.size + count
            connection.queued = False
        return 0

    def _write(self, chain: Chain, connection: Connection, op: int, flags: int, count: int) -> None:
        ours, theirs = connection.host_port, connection.guest_port
        header = HEADER.pack(HOST, self.cid, ours, theirs, count, STREAM, op, flags, *connection.announce())
        chain.fill(header)
        if count:
            connection.put(_behind(chain.writable, count), count)
            connection.unblock()

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """The connections that have a name, and the ports of those that will be lost."""
        named = [connection for connection in self.connections if connection.name]
        lost = [(connection.host_port, connection.guest_port) for connection in self.connections if not connection.name]
        lost += [(ours, theirs) for cid, ours, _, theirs in self._resets if cid == HOST]
        return {
            "cid": self.config(),
            "connections": b"".join(connection.save() for connection in named),
            "lost": b"".join(_PORTS.pack(*ports) for ports in lost),
        }

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave. Invalid where it is damaged.

        The guest's sockets of lost connections must learn of it. TRANSPORT_RESET would tell all of them, so it is for
        machines in which nothing survives; otherwise each lost one gets an RST.
        """
        self.cid = int.from_bytes(state["cid"], "little")
        rest = memoryview(state["connections"])
        while rest:
            connection, rest = Connection.restore(self, rest)
            self._connections[connection.host_port, connection.guest_port] = connection
        if not self._connections:
            self._event_due = True
            return
        for ours, theirs in _PORTS.iter_unpack(state["lost"]):
            self._resets.append((HOST, ours, self.cid, theirs))


def _behind(views: list[memoryview], length: int) -> list[memoryview]:
    """The ``length`` bytes behind the header. GuestFault where there are fewer."""
    parts, skip = [], HEADER.size
    for view in views:
        if skip >= len(view):
            skip -= len(view)
            continue
        part = view[skip : skip + length]
        length -= len(part)
        skip = 0
        if part:
            parts.append(part)
        if not length:
            break
    if length:
        raise GuestFault(f"a vsock packet is {length} bytes shorter than its header says")
    return parts
