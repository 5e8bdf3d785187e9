"""Vsock against a driver that does anything it may, in any order: a model beside it knows what must have arrived."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mamushka.machine.devices.virtio.vsock import BUFFER, SEND_MAX, Connection, Endpoint, Vsock
from mamushka.machine.devices.virtio.vsock.packet import (
    BOTH,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RST,
    RW,
    SHUTDOWN,
)
from tests.vsock import CID, Driver

SIZES = st.integers(0, 3000) | st.just(65536)


def stream(start: int, length: int) -> bytes:
    """Bytes of which each place is known."""
    return bytes((start + at) * 7 % 251 for at in range(length))


class End(Endpoint):
    """The host's side: remembers, and holds what it is given until it is told to consume."""

    def __init__(self) -> None:
        self.got = 0
        self.ends: list[str] = []

    def received(self, view: memoryview) -> None:
        assert "ended" not in self.ends and "reset" not in self.ends
        assert bytes(view) == stream(self.got, len(view)), "out of order, twice or lost"
        self.got += len(view)

    def ended(self) -> None:
        self.ends.append("ended")

    def stopped(self) -> None:
        self.ends.append("stopped")

    def reset(self) -> None:
        self.ends.append("reset")


class Stream(RuleBasedStateMachine):
    """One connection, the guest's side of which is this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.vsock = Vsock(CID)
        self.end = End()
        self.connection: Connection | None = None
        self.vsock.listen(1, self.accept)
        self.driver = Driver(self.vsock, room=4)
        self.sent = self.got = self.read = self.accepted = 0  # guest's bytes out, in, in and read; host's accepted
        self.host_alloc = self.host_forwarded = 0
        self.guest_shut = self.host_shut = self.host_asked = 0
        self.over = False

    def accept(self, connection: Connection) -> None:
        self.connection, connection.endpoint, connection.name = connection, self.end, "kept"

    def take_over(self, connection: Connection) -> None:
        self.connection, connection.endpoint = connection, self.end

    @initialize(alloc=st.sampled_from([0, 1, 1000, 1 << 18]))
    def begin(self, alloc: int) -> None:
        self.alloc = alloc
        self.speak(REQUEST)

    def speak(self, op: int, data: bytes = b"", flags: int = 0) -> None:
        self.driver.send(op, 1, 2, data, flags=flags, alloc=self.alloc, forwarded=self.read & 0xFFFFFFFF)
        self.hear()

    def hear(self) -> None:
        self.driver.turn()
        for packet in self.driver.packets():
            self.host_alloc, self.host_forwarded = packet.alloc or self.host_alloc, packet.forwarded
            if packet.op == "rw":
                assert not self.host_shut & NO_SEND, "bytes behind the end"
                assert not self.guest_shut & NO_RECEIVE, "bytes for nobody"
                assert packet.data == stream(self.got, len(packet.data)), "out of order, twice or lost"
                self.got += len(packet.data)
                assert self.got - self.read <= self.alloc, "credit overrun"
            elif packet.op == "shutdown":
                self.host_shut |= packet.flags
            elif packet.op == "rst":
                self.over = True

    live = precondition(lambda self: not self.over)

    @live
    @rule(length=SIZES)
    def guest_sends(self, length: int) -> None:
        length = min(length, self.host_alloc - (self.sent - self.host_forwarded))
        if not self.guest_shut & NO_SEND and length >= 0:
            data = stream(self.sent, length)
            self.sent += length
            self.speak(RW, data)

    @live
    @rule(length=SIZES)
    def guest_reads(self, length: int) -> None:
        self.read += min(length, self.got - self.read)
        self.speak(CREDIT_UPDATE)

    @live
    @rule(alloc=st.sampled_from([1000, 5000, 1 << 18]))
    def guest_changes_its_buffer(self, alloc: int) -> None:
        if alloc >= self.got - self.read:  # one that shrinks below what is under way has no rule
            self.alloc = max(alloc, self.alloc)
            self.speak(CREDIT_REQUEST)

    @live
    @rule(flags=st.sampled_from([NO_SEND, NO_RECEIVE, BOTH]), really=st.integers(0, 3))
    def guest_shuts(self, flags: int, really: int) -> None:
        if really:
            return  # or most runs were short
        self.guest_shut |= flags
        self.speak(SHUTDOWN, flags=flags)
        if self.guest_shut == BOTH and self.driver.room:
            assert self.over

    @rule(count=st.integers(1, 8))
    def guest_makes_room(self, count: int) -> None:
        self.driver.give(min(count, len(self.driver.rings[0].free)))
        self.hear()

    @rule(length=SIZES)
    def host_sends(self, length: int) -> None:
        assert self.connection is not None
        self.accepted += self.connection.send(stream(self.accepted, length))
        self.hear()

    @rule(length=SIZES)
    def host_consumes(self, length: int) -> None:
        assert self.connection is not None
        self.connection.consumed(min(length, self.connection.held))
        self.hear()

    @rule(send=st.booleans(), receive=st.booleans(), really=st.integers(0, 2))
    def host_shuts(self, send: bool, receive: bool, really: int) -> None:
        if really:
            return
        assert self.connection is not None
        self.connection.shutdown(send=send, receive=receive)
        self.host_asked |= (NO_SEND if send else 0) | (NO_RECEIVE if receive else 0)
        self.hear()

    @precondition(lambda self: not self.over and self.host_shut == BOTH)
    @rule()
    def guest_answers_both(self) -> None:
        self.speak(RST)
        self.over = True
        assert "reset" not in self.end.ends, "a clean end was told as a break"

    @live
    @rule()
    def goes_on_elsewhere(self) -> None:
        """Save, and restore into a fresh device with fresh rings of the same driver."""
        self.hear()
        if not self.vsock.connections:
            return
        state = self.vsock.save()
        self.driver.close()
        self.end.ends = [end for end in self.end.ends if end != "reset"]
        self.vsock = Vsock(CID)
        self.vsock.expect("kept", self.take_over)
        self.vsock.restore(state)
        self.driver = Driver(self.vsock, room=4)
        self.hear()

    @invariant()
    def bounded(self) -> None:
        if self.connection is not None:
            assert self.connection.held <= BUFFER and len(self.connection._unsent) <= SEND_MAX

    @invariant()
    def nothing_spins(self) -> None:
        assert self.driver.turn() == 0

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        connection = self.connection
        if self.over or connection is None or not self.driver.room or self.guest_shut & NO_RECEIVE:
            return
        if self.got < self.accepted:
            assert self.got - self.read == self.alloc, "bytes wait though there is credit and room"
        elif self.host_asked:
            assert self.host_shut & self.host_asked == self.host_asked, "a close waits for nothing"

    @invariant()
    def credit_comes_back(self) -> None:
        if not self.over and self.driver.room and self.connection is not None and not self.connection.held:
            assert self.host_alloc - (self.sent - self.host_forwarded) >= BUFFER // 2, "the guest is not told of credit"

    @invariant()
    def all_of_the_guests_bytes_have_come(self) -> None:
        if not self.host_asked & NO_RECEIVE:
            assert self.end.got == self.sent

    def teardown(self) -> None:
        self.driver.close()


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
