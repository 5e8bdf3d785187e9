"""One stream between a program in the guest and something in the monitor. VIRTIO 1.2, section 5.10.6.

Each side tells with every packet how much it can hold (``buf_alloc``) and how much of what came it has passed on
(``fwd_cnt``, a free-running 32-bit counter); the other side never has more under way than that, its credit:

    credit = buf_alloc - (bytes sent - fwd_cnt)

So a reader that is slow stops its writer, and nobody's memory grows. What we have accepted for the guest waits here,
``SEND_MAX`` bytes at most; what the guest has sent is handed to the ``Endpoint`` at once, which says ``consumed`` when
it has no more need to hold it: until then it counts against ``BUFFER``.

A guest that sends more than its credit allows, or what makes no sense in a connection's state, loses the connection.

    asking  we sent REQUEST and wait for RESPONSE
    open    bytes go both ways, or one way after half a close
    closing all is said; the guest may still take what it was sent, and answers our SHUTDOWN of both ways with RST
    closed  nothing goes any more; the ports are free
"""

from __future__ import annotations

from struct import Struct

from mamushka.errors import Invalid
from mamushka.machine.devices.virtio.vsock.packet import (
    BOTH,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Device(Protocol):
        """What a connection asks of its device."""

        def wake(self, connection: Connection) -> None:
            """It has something to send."""

        def drop(self, connection: Connection, *, answer: bool) -> None:
            """It is closed; ``answer`` the guest with RST."""


BUFFER = 256 * 1024  # what we let the guest have under way in each connection; Linux has the same default
SEND_MAX = 128 * 1024  # what we accept for the guest and have not sent yet, in each connection

ASKING, OPEN, CLOSING, CLOSED = "asking", "open", "closing", "closed"
LIFE = {
    ASKING: {"response": OPEN, "over": CLOSED},
    OPEN: {"close": CLOSING, "over": CLOSED},
    CLOSING: {"close": CLOSING, "over": CLOSED},
    CLOSED: {"close": CLOSED, "over": CLOSED},
}

_MASK = 0xFFFFFFFF
# host and guest port, the peer's buf_alloc and fwd_cnt, bytes sent, received and consumed, the five sets of flags,
# lengths of name and unsent bytes
_STATE = Struct("<7I5B2I")


class Endpoint:
    """Who is told what happens in a connection; override what you need. All calls come in the loop's thread.

    A connection's end is told by ``ended`` and ``stopped`` together (in any order, each once), or by ``reset``. After
    one's own ``close`` or ``reset`` nothing is told any more.
    """

    def opened(self) -> None:
        """The guest has accepted the connection that ``Vsock.connect`` asked for."""

    def received(self, view: memoryview) -> None:
        """Bytes from the guest, in order. The view is guest memory, which the guest may write meanwhile, and valid
        until ``flushed`` has returned: write it or copy it until then. Say ``Connection.consumed`` when (or as soon
        as) they need not be held any longer."""

    def flushed(self) -> None:
        """The batch that ``received`` was called for is over: a good moment for one writev of all of it."""

    def ended(self) -> None:
        """The guest sends no more; what ``received`` gave was all. It may still receive."""

    def writable(self) -> None:
        """There is a good part of ``room`` again, after a ``send`` that took the last of it. Never from within it."""

    def stopped(self) -> None:
        """The guest receives no more: what was not sent is thrown away. It may still send."""

    def reset(self) -> None:
        """The connection broke, was refused, or the driver was reset; nothing goes any more in either direction."""


_NOBODY = Endpoint()


class Connection:
    """One end of a stream, by ``Vsock.listen``, ``Vsock.connect`` or ``Vsock.expect``. Loop's thread only.

    ``endpoint`` is told what happens; set it before returning from what gave the connection. ``name`` says, when it is
    not empty, that the connection is to survive a save and restore: its owner then expects it by that name, and keeps
    by itself what it had received and not consumed.
    """

    __slots__ = (
        "_announced", "_blocked", "_credit_asked", "_device", "_flags_due", "_flags_seen", "_flags_sent", "_greeting",
        "_peer_alloc", "_peer_forwarded", "_received", "_sent", "_unsent", "_update", "endpoint", "forwarded",
        "guest_port", "host_port", "name", "queued", "state", "touched",
    )  # fmt: skip

    def __init__(self, device: Device, host_port: int, guest_port: int, state: str = OPEN) -> None:
        self._device = device
        self.host_port, self.guest_port, self.state = host_port, guest_port, state
        self.endpoint: Endpoint = _NOBODY
        self.name = ""
        self.queued = False  # among the device's connections that have something to send
        self.touched = False  # among those that received something in this batch
        self._greeting = REQUEST if state == ASKING else RESPONSE  # the first packet to be sent; 0 when it was
        self._unsent = bytearray()
        self._blocked = False  # there was no room left
        self._sent = self._peer_forwarded = self._peer_alloc = 0
        self._received = self.forwarded = self._announced = 0
        self._update = False  # the guest is to be told of new credit
        self._credit_asked = False  # and we asked for some, since the guest last spoke
        self._flags_due = self._flags_sent = self._flags_seen = 0

    def __repr__(self) -> str:
        return f"<Connection host:{self.host_port} guest:{self.guest_port} {self.state}>"

    # What the owner calls

    @property
    def room(self) -> int:
        """Bytes that ``send`` would accept now; zero where nothing can be sent any more."""
        return SEND_MAX - len(self._unsent) if self._sending else 0

    @property
    def _sending(self) -> bool:
        return self.state in (ASKING, OPEN) and not self._flags_due & NO_SEND and not self._flags_seen & NO_RECEIVE

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Accept bytes for the guest, the first ones that there is ``room`` for; how many. They are copied.

        When that leaves no room, ``writable`` is called as soon as there is some again. What is sent after
        ``shutdown`` or to a guest that has stopped receiving is not accepted, and ``writable`` never called.
        """
        count = min(len(data), self.room)
        if count:
            self._unsent += memoryview(data)[:count]
            self._blocked = not self.room
            self._wake()
        return count

    def consumed(self, count: int) -> None:
        """So many of the bytes that were ``received`` are not held any longer: the guest may send as many again.

        Harmless after a close, or for bytes that a ``shutdown`` of receiving has given up already."""
        self.forwarded = self.forwarded + min(count, self.held) & _MASK
        self._consider_update()

    @property
    def held(self) -> int:
        """Bytes that were received and not consumed."""
        return self._received - self.forwarded & _MASK

    def shutdown(self, *, send: bool = True, receive: bool = False) -> None:
        """Half a close. ``send``: nothing follows what was accepted; the guest reads an end behind it. ``receive``:
        nothing is wanted any more; the guest's writes fail, and what still comes is thrown away."""
        if self.state not in (ASKING, OPEN):
            return
        self._flags_due |= (NO_SEND if send else 0) | (NO_RECEIVE if receive else 0)
        if receive:
            self._discard()
        self._wake()

    def close(self) -> None:
        """Send what was accepted, then end both ways. Nothing is told any more; never waits."""
        if self.state == ASKING:
            self.reset()
            return
        self.shutdown(send=True, receive=True)
        self.endpoint = _NOBODY
        self._step("close")

    def reset(self) -> None:
        """Break the connection: what was accepted and not sent is lost. Nothing is told any more."""
        self._over(answer=True)

    # What the device calls

    @property
    def attended(self) -> bool:
        """Whether somebody wants to know what happens."""
        return self.endpoint is not _NOBODY

    def asked(self, alloc: int, forwarded: int) -> None:
        """The guest's REQUEST told this."""
        self._peer_alloc, self._peer_forwarded = alloc, forwarded

    def arrived(self, op: int, flags: int, alloc: int, forwarded: int, payload: list[memoryview], length: int) -> None:
        """A packet of the guest's for this connection."""
        self._peer_alloc, self._peer_forwarded, self._credit_asked = alloc, forwarded, False
        if op == RST:
            self._broken()
        elif self.state == ASKING:
            self._answered(op)
        elif op == RW:
            self._receive(payload, length)
        elif op == SHUTDOWN:
            self._shut(flags & BOTH)
        elif op == CREDIT_REQUEST:
            self._update = True
        elif op != CREDIT_UPDATE:
            self._refuse()
        if self.state != CLOSED:
            self._wake()

    def next_packet(self, room: int) -> tuple[int, int, int]:
        """What to send now, in at most ``room`` bytes: operation (zero: nothing), flags, count of bytes to ``put``."""
        if self.state == CLOSED:
            return 0, 0, 0
        if self._greeting:
            op, self._greeting = self._greeting, 0
            return op, 0, 0
        if self.state == ASKING:
            return 0, 0, 0
        count = min(len(self._unsent), room, self._credit())
        if count > 0:
            return RW, 0, count
        due = self._flags_due & ~(NO_SEND if self._unsent else 0) & ~self._flags_sent
        if due:
            self._flags_sent |= due
            return SHUTDOWN, self._flags_sent, 0
        if self._unsent and not self._credit_asked and self._credit() <= 0:
            self._credit_asked = True
            return CREDIT_REQUEST, 0, 0
        return (CREDIT_UPDATE, 0, 0) if self._update else (0, 0, 0)

    def put(self, views: list[memoryview], count: int) -> None:
        """Copy the bytes that ``next_packet`` counted."""
        done = 0
        with memoryview(self._unsent) as unsent:
            for view in views:
                part = min(len(view), count - done)
                view[:part] = unsent[done : done + part]
                done += part
        del self._unsent[:count]
        self._sent = self._sent + count & _MASK

    def announce(self) -> tuple[int, int]:
        """``buf_alloc`` and ``fwd_cnt`` for the header of what is sent now."""
        self._announced, self._update = self.forwarded, False
        return BUFFER, self.forwarded

    def unblock(self) -> None:
        """After packets were made: call ``writable`` where it was promised and there is a good part of room."""
        if self._blocked and self.room >= SEND_MAX // 2:
            self._blocked = False
            self.endpoint.writable()

    def lost(self) -> None:
        """The driver was reset or left behind: tell the owner, and answer nobody."""
        endpoint = self.endpoint
        self._over(answer=False)
        endpoint.reset()

    # Inside

    def _step(self, event: str) -> None:
        self.state = LIFE[self.state][event]

    def _wake(self) -> None:
        if self.state != CLOSED:
            self._device.wake(self)

    def _credit(self) -> int:
        return self._peer_alloc - (self._sent - self._peer_forwarded & _MASK)

    def _consider_update(self) -> None:
        """Tell the guest of new credit before it has less than half of it left, and not for every byte."""
        behind = self._received - self._announced & _MASK
        if self.forwarded != self._announced and behind > BUFFER // 2:
            self._update = True
            self._wake()

    def _discard(self) -> None:
        """Nobody holds what has come, or comes yet."""
        self.forwarded = self._received

    def _answered(self, op: int) -> None:
        if op != RESPONSE:
            self._refuse()
            return
        self._step("response")
        self.endpoint.opened()

    def _receive(self, payload: list[memoryview], length: int) -> None:
        if self._flags_seen & NO_SEND or length > BUFFER - self.held:
            self._refuse()  # it said that nothing would come, or passes over its credit
            return
        self._received = self._received + length & _MASK
        if self._flags_due & NO_RECEIVE:
            self._discard()
            self._consider_update()
            return
        for view in payload:
            self.endpoint.received(view)
        self.touched = True

    def _shut(self, flags: int) -> None:
        fresh = flags & ~self._flags_seen
        self._flags_seen |= fresh
        endpoint = self.endpoint
        if self._flags_seen == BOTH:
            self._over(answer=True)  # 5.10.6.5: RST says that this was understood, and the ports are free
        elif fresh & NO_RECEIVE:
            self._unsent.clear()
            self._blocked = False
        self._tell(endpoint, fresh)

    def _tell(self, endpoint: Endpoint, fresh: int) -> None:
        if self.touched:  # what came before goes first, also what was gathered for a batch
            endpoint.flushed()
        if fresh & NO_SEND:
            endpoint.ended()
        if fresh & NO_RECEIVE:
            endpoint.stopped()

    def _broken(self) -> None:
        """RST: the answer to a SHUTDOWN of both ways, or the connection is broken or refused."""
        endpoint, clean = self.endpoint, self._flags_sent == BOTH
        self._over(answer=False)
        if clean:
            self._tell(endpoint, BOTH & ~self._flags_seen)
        else:
            self._tell(endpoint, 0)
            endpoint.reset()

    def _refuse(self) -> None:
        """The guest does what it must not."""
        endpoint = self.endpoint
        self._over(answer=True)
        self._tell(endpoint, 0)
        endpoint.reset()

    def _over(self, *, answer: bool) -> None:
        if self.state == CLOSED:
            return
        self._step("over")
        self.endpoint = _NOBODY
        self._unsent.clear()
        self._device.drop(self, answer=answer)

    # Going on elsewhere

    def save(self) -> bytes:
        """Ports, counters, flags, name, and what was accepted and not sent."""
        name = self.name.encode()
        state = (ASKING, OPEN, CLOSING, CLOSED).index(self.state)
        return (
            _STATE.pack(
                self.host_port, self.guest_port, self._peer_alloc, self._peer_forwarded, self._sent, self._received,
                self.forwarded, state, self._greeting, self._flags_due, self._flags_sent, self._flags_seen, len(name),
                len(self._unsent),
            )
            + name
            + self._unsent
        )  # fmt: skip

    @classmethod
    def restore(cls, device: Device, state: memoryview) -> tuple[Connection, memoryview]:
        """A connection from what ``save`` gave, and what follows it. Invalid where it is not that."""
        if len(state) < _STATE.size:
            raise Invalid(f"a saved connection of {len(state)} bytes is cut off")
        host, guest, alloc, peer, sent, received, forwarded, life, greeting, due, done, seen, name, unsent = (
            _STATE.unpack_from(state)
        )
        end = _STATE.size + name + unsent
        if life > 2 or unsent > SEND_MAX or end > len(state) or received - forwarded & _MASK > BUFFER:
            raise Invalid(f"a saved connection makes no sense: state {life}, {name} and {unsent} bytes")
        self = cls(device, host, guest, (ASKING, OPEN, CLOSING)[life])
        self._peer_alloc, self._peer_forwarded, self._sent = alloc, peer, sent
        self._received, self.forwarded, self._announced = received, forwarded, forwarded
        self._greeting, self._flags_due, self._flags_sent, self._flags_seen = greeting, due, done, seen
        self.name = str(state[_STATE.size : _STATE.size + name], "utf-8", "replace")
        self._unsent += state[_STATE.size + name : end]
        self._update = True
        return self, state[end:]
