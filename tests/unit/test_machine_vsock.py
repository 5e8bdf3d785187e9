"""Vsock: who is told what, in which order, and what a guest that breaks the rules cannot do. VIRTIO 1.2, 5.10."""

from __future__ import annotations

import pytest

from mamushka.errors import Conflict, GuestFault, Invalid, Unavailable
from mamushka.machine.devices.virtio.vsock import ANY, BUFFER, CONNECTIONS, SEND_MAX, Connection, Endpoint, Vsock
from mamushka.machine.devices.virtio.vsock.packet import (
    BOTH,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
)
from mamushka.machine.devices.virtio.vsock.vsock import RESETS
from tests.vsock import CID, Driver, driver


class Recorder(Endpoint):
    """Writes down what it is told."""

    def __init__(self, connection: Connection | None = None, *, hold: bool = False) -> None:
        self.told: list[str] = []
        self.data = b""
        self.connection, self.hold = connection, hold
        if connection is not None:
            connection.endpoint = self

    def opened(self) -> None:
        self.told.append("opened")

    def received(self, view: memoryview) -> None:
        self.data += view
        if self.connection is not None and not self.hold:
            self.connection.consumed(len(view))

    def flushed(self) -> None:
        self.told.append(f"flushed at {len(self.data)}")

    def ended(self) -> None:
        self.told.append("ended")

    def writable(self) -> None:
        self.told.append("writable")

    def stopped(self) -> None:
        self.told.append("stopped")

    def reset(self) -> None:
        self.told.append("reset")


def listening(port: int = 1024, **settings: bool) -> tuple[Vsock, list[Recorder]]:
    vsock, made = Vsock(CID), []
    vsock.listen(port, lambda connection: made.append(Recorder(connection, **settings)))
    return vsock, made


def opened(guest: Driver, made: list[Recorder], theirs: int = 5000, **fields: int) -> tuple[Connection, Recorder]:
    guest.send(REQUEST, 1024, theirs, **fields)
    assert [packet.op for packet in guest.packets()] == ["response"]
    connection = made[-1].connection
    assert connection is not None
    return connection, made[-1]


def test_a_stream_both_ways() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        assert vsock.config() == (3).to_bytes(8, "little")
        connection, endpoint = opened(guest, made)
        guest.put(RW, 1024, 5000, b"hello ")
        guest.put(RW, 1024, 5000, b"there")
        guest.vsock.notify(1)
        assert (endpoint.data, endpoint.told) == (b"hello there", ["flushed at 11"])
        assert connection.send(b"x" * 10_000) == 10_000
        guest.turn()
        packets = guest.packets()
        assert [len(packet.data) for packet in packets] == [4096, 4096, 1808]
        assert {(packet.op, packet.ports, packet.alloc, packet.forwarded) for packet in packets} == {
            ("rw", (1024, 5000), BUFFER, 11)
        }


def test_what_nobody_listens_for_is_refused() -> None:
    with driver() as guest:
        guest.send(REQUEST, 7, 8)
        guest.send(RW, 9, 10, b"x")
        guest.send(RST, 11, 12)
        guest.send(REQUEST, 13, 14, kind=2)
        guest.send(REQUEST, 15, 16, source=99)
        assert [(packet.op, packet.ports) for packet in guest.packets()] == [
            ("rst", (7, 8)), ("rst", (9, 10)), ("rst", (13, 14)),
        ]  # fmt: skip


def test_a_listener_for_all_ports_comes_second_and_may_refuse() -> None:
    vsock, made = listening()
    seen = []

    def any_port(connection: Connection) -> None:
        seen.append(connection.host_port)
        connection.reset()

    vsock.listen(ANY, any_port)
    with pytest.raises(Conflict):
        vsock.listen(1024, any_port)
    with driver(vsock) as guest:
        opened(guest, made)
        guest.send(REQUEST, 77, 5000)
        assert [(packet.op, packet.ports) for packet in guest.packets()] == [("rst", (77, 5000))]
        vsock.unlisten(1024)
        guest.send(REQUEST, 1024, 5001)
        assert seen == [77, 1024]


def test_we_connect_to_the_guest() -> None:
    vsock = Vsock(CID)
    with pytest.raises(Unavailable):
        vsock.connect(52)
    with driver(vsock) as guest:
        connection = vsock.connect(52)
        endpoint = Recorder(connection)
        connection.send(b"early")
        guest.turn()
        (asked,) = guest.packets()
        assert (asked.op, asked.guest_port) == ("request", 52)
        guest.send(RESPONSE, asked.host_port, 52)
        assert endpoint.told == ["opened"]
        assert [(packet.op, packet.data) for packet in guest.packets()] == [("rw", b"early")]
        refused = Recorder(vsock.connect(53))
        guest.turn()
        (asked,) = guest.packets()
        guest.send(RST, asked.host_port, 53)
        assert refused.told == ["reset"] and guest.packets() == []


def test_credit_of_the_guest_is_never_passed_over() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, _ = opened(guest, made, alloc=1000)
        assert connection.send(bytes(5000)) == 5000
        guest.turn()
        packets = guest.packets()
        assert [(packet.op, len(packet.data)) for packet in packets] == [("rw", 1000), ("ask", 0)]
        guest.send(CREDIT_UPDATE, 1024, 5000, alloc=1000, forwarded=600)
        assert [(packet.op, len(packet.data)) for packet in guest.packets()] == [("rw", 600), ("ask", 0)]
        guest.send(CREDIT_UPDATE, 1024, 5000, alloc=1000, forwarded=99_999)  # more than it was ever sent
        assert [packet.op for packet in guest.packets()] == ["ask"]
        guest.send(CREDIT_UPDATE, 1024, 5000, alloc=100_000, forwarded=1600)
        assert sum(len(packet.data) for packet in guest.packets()) == 3400


def test_a_guest_that_never_reads_costs_a_known_amount() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, endpoint = opened(guest, made, alloc=0)
        assert connection.send(bytes(1 << 20)) == SEND_MAX
        assert connection.room == 0 and connection.send(b"x") == 0
        assert guest.turn() <= 2, "it spins"
        assert endpoint.told == []
        guest.packets()
        guest.send(CREDIT_UPDATE, 1024, 5000, alloc=SEND_MAX)
        guest.packets()
        while "writable" not in endpoint.told:
            guest.give(8)
            assert guest.packets()
        assert connection.room >= SEND_MAX // 2


def test_a_guest_that_passes_over_our_credit_loses_the_connection() -> None:
    vsock, made = listening(hold=True)
    with driver(vsock) as guest:
        _, endpoint = opened(guest, made)
        for _ in range(BUFFER // 65536):
            guest.send(RW, 1024, 5000, bytes(65536))
        assert len(endpoint.data) == BUFFER and "reset" not in endpoint.told
        guest.packets()
        guest.send(RW, 1024, 5000, b"x")
        assert endpoint.told[-1] == "reset" and [packet.op for packet in guest.packets()] == ["rst"]
        assert vsock.connections == ()


def test_the_guest_is_told_of_credit_before_it_runs_out() -> None:
    vsock, made = listening(hold=True)
    with driver(vsock) as guest:
        connection, _ = opened(guest, made)
        guest.send(CREDIT_REQUEST, 1024, 5000)
        assert [(packet.op, packet.forwarded) for packet in guest.packets()] == [("credit", 0)]
        for _ in range(3):
            guest.send(RW, 1024, 5000, bytes(65536))
        connection.consumed(1)
        guest.turn()
        assert [(packet.op, packet.forwarded) for packet in guest.packets()] == [("credit", 1)]
        connection.consumed(3 * 65536 - 1)
        guest.turn()
        assert [(packet.op, packet.forwarded) for packet in guest.packets()] == [("credit", 3 * 65536)]
        assert connection.held == 0


def test_half_closes() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, endpoint = opened(guest, made)
        guest.put(RW, 1024, 5000, b"last")
        guest.put(SHUTDOWN, 1024, 5000, flags=NO_SEND)
        guest.vsock.notify(1)
        assert endpoint.told[:2] == ["flushed at 4", "ended"] and endpoint.data == b"last"
        assert connection.send(b"answer") == 6
        connection.shutdown()
        assert connection.send(b"no more") == 0
        guest.turn()
        assert [(packet.op, packet.data, packet.flags) for packet in guest.packets()] == [
            ("rw", b"answer", 0), ("shutdown", b"", NO_SEND),
        ]  # fmt: skip
        connection.close()
        guest.turn()
        assert [(packet.op, packet.flags) for packet in guest.packets()] == [("shutdown", BOTH)]
        guest.send(RST, 1024, 5000)
        assert vsock.connections == () and "reset" not in endpoint.told


def test_a_close_waits_for_what_was_accepted() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, _ = opened(guest, made, alloc=10)
        connection.send(bytes(25))
        connection.close()
        guest.turn()
        seen = guest.packets()
        for forwarded in (10, 20):
            guest.send(CREDIT_UPDATE, 1024, 5000, alloc=10, forwarded=forwarded)
            seen += guest.packets()
        assert [packet.op for packet in seen if packet.op != "ask"] == ["rw", "shutdown", "rw", "rw", "shutdown"]
        assert [packet.flags for packet in seen if packet.op == "shutdown"] == [NO_RECEIVE, BOTH]


def test_a_guest_that_closes_is_answered_with_rst() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, endpoint = opened(guest, made)
        guest.put(RW, 1024, 5000, b"bye")
        guest.put(SHUTDOWN, 1024, 5000, flags=BOTH)
        guest.vsock.notify(1)
        assert endpoint.told[:3] == ["flushed at 3", "ended", "stopped"]
        assert [packet.op for packet in guest.packets()] == ["rst"]
        assert connection.send(b"x") == 0 and vsock.connections == ()


def test_a_guest_that_stops_receiving_is_sent_nothing() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, endpoint = opened(guest, made, alloc=0)
        connection.send(bytes(100))
        guest.send(SHUTDOWN, 1024, 5000, flags=NO_RECEIVE)
        assert endpoint.told == ["stopped"] and connection.room == 0
        guest.send(RW, 1024, 5000, b"still")
        assert endpoint.data == b"still"


def test_what_comes_after_we_stopped_receiving_is_thrown_away() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        connection, endpoint = opened(guest, made)
        connection.shutdown(send=False, receive=True)
        for _ in range(10):
            guest.send(RW, 1024, 5000, bytes(65536))
        assert endpoint.data == b"" and connection.held == 0
        assert ("shutdown", NO_RECEIVE) in [(packet.op, packet.flags) for packet in guest.packets()]


@pytest.mark.parametrize("op", [REQUEST, RESPONSE, 0, 99])
def test_what_makes_no_sense_breaks_the_connection(op: int) -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        _, endpoint = opened(guest, made)
        guest.send(op, 1024, 5000)
        assert endpoint.told == ["reset"] and [packet.op for packet in guest.packets()] == ["rst"]


def test_packets_that_end_the_machine() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        opened(guest, made)
        guest.put(RW, 1024, 5000, b"short", length=6)
        with pytest.raises(GuestFault, match="shorter"):
            vsock.notify(1)
    with driver() as guest:
        guest.put(RW, 1, 2, length=65537)
        with pytest.raises(GuestFault, match="the most is"):
            guest.vsock.notify(1)
    with driver() as guest:
        guest.raw(bytes(43))
        with pytest.raises(GuestFault, match="cut off"):
            guest.vsock.notify(1)
    with driver(room=1, buffer=-1) as guest:
        guest.put(REQUEST, 1, 2)
        with pytest.raises(GuestFault, match="the header takes more"):
            guest.vsock.notify(1)


def test_a_flood_of_requests_is_bounded_by_what_is_taken_from_us() -> None:
    vsock, _ = listening()
    with driver(vsock, room=0) as guest:
        for theirs in range(RESETS + 200):
            if not guest.rings[1].free and guest.rings[1].seen == guest.rings[1].queue.next_used:
                break
            guest.send(REQUEST, 9, theirs)
        assert len(vsock._resets) == RESETS
        assert guest.turn() == 0, "it spins"
        waiting = guest.rings[1].index - guest.rings[1].queue.next_available
        assert waiting > 0, "it took more than it can answer"
        guest.give(16)
        guest.turn()
        assert len(guest.packets()) == 16
        assert guest.rings[1].index - guest.rings[1].queue.next_available == max(0, waiting - 16)


def test_connections_are_bounded_in_both_directions() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        for theirs in range(CONNECTIONS + 1):
            guest.send(REQUEST, 1024, theirs)
            (answer,) = guest.packets()
            guest.give(1)
        assert answer.op == "rst" and len(made) == len(vsock.connections) == CONNECTIONS
        with pytest.raises(Unavailable):
            vsock.connect(1)


def test_streams_take_turns() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        first, _ = opened(guest, made, 5000)
        second, _ = opened(guest, made, 5001)
        first.send(bytes(40960))
        second.send(bytes(4096))
        guest.turn()
        assert [packet.guest_port for packet in guest.packets()][:3] == [5000, 5001, 5000]


def test_a_driver_that_is_reset_loses_its_connections() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        _, endpoint = opened(guest, made)
        vsock.stop()
        assert endpoint.told == ["reset"] and vsock.connections == ()
        vsock.start([ring.queue for ring in guest.rings], 1, guest.loop)
        guest.turn()
        opened(guest, made)


def test_everything_is_reset_where_nothing_survives() -> None:
    vsock, made = listening()
    with driver(vsock) as guest:
        opened(guest, made)
        state = vsock.save()
    fresh = Vsock(7)
    fresh.restore(state)
    with driver(fresh) as guest:
        assert fresh.cid == CID and fresh.connections == ()
        guest.memory.write(guest.rings[2].buffers, b"\xff" * 4)
        guest.event()
        assert list(guest.rings[2].collect()) == [(0, 4)]
        assert bytes(guest.memory.read(guest.rings[2].buffers, 4)) == bytes(4)


def test_a_named_connection_survives_and_the_others_are_reset() -> None:
    vsock, made = listening(hold=True)
    with driver(vsock) as guest:
        kept, _ = opened(guest, made, 5000, alloc=4)
        opened(guest, made, 5001)
        forgotten, _ = opened(guest, made, 5002)
        kept.name, forgotten.name = "agent", "other"
        guest.send(RW, 1024, 5000, b"held", alloc=4)
        kept.send(b"abcdefgh")
        guest.turn()
        assert [packet.data for packet in guest.packets() if packet.op == "rw"] == [b"abcd"]
        state = vsock.save()
    fresh, _ = listening()
    taken: list[Recorder] = []
    fresh.expect("agent", lambda connection: taken.append(Recorder(connection, hold=True)))
    fresh.restore(state)
    with driver(fresh) as guest:
        (endpoint,) = taken
        assert endpoint.connection is not None and endpoint.connection.held == 4
        guest.turn()
        assert {(packet.op, packet.guest_port) for packet in guest.packets() if packet.op == "rst"} == {
            ("rst", 5001), ("rst", 5002),
        }  # fmt: skip
        guest.send(CREDIT_UPDATE, 1024, 5000, alloc=4, forwarded=4)
        assert [packet.data for packet in guest.packets() if packet.op == "rw"] == [b"efgh"]
        guest.send(RW, 1024, 5000, b"more", alloc=4, forwarded=8)
        assert endpoint.data == b"more"


@pytest.mark.parametrize("raw", [b"x", bytes(40), b"\xff" * 100])
def test_a_damaged_state_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid):
        Vsock().restore({"cid": bytes(8), "connections": raw, "lost": b""})


def test_an_endpoint_may_end_the_connection_from_every_call() -> None:
    class Ending(Recorder):
        def received(self, view: memoryview) -> None:
            assert self.connection is not None
            self.connection.reset()

    vsock = Vsock(CID)
    vsock.listen(1, Ending)
    with driver(vsock) as guest:
        guest.send(REQUEST, 1, 2)
        guest.put(RW, 1, 2, b"a")
        guest.put(RW, 1, 2, b"b")
        vsock.notify(1)
        guest.turn()
        assert [packet.op for packet in guest.packets()] == ["response", "rst", "rst"]
        assert HEADER.size == 44
