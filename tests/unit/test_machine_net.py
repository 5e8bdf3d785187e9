"""The network card with a pair of sockets for a tap, driven through its registers and rings."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.net import Net, control
from mamushka.machine.devices.virtio.net import device as module
from mamushka.machine.devices.virtio.net.frames import FRAME_MAX, HEADER
from mamushka.machine.devices.virtio.queue import Chain, Queue, Unused
from mamushka.machine.loop import Loop
from tests.virtio import Guest

MAC = bytes.fromhex("02aabbccddee")
RX, TX, CONTROL = 0, 1, 2
HEAD = bytes(HEADER)


@pytest.fixture(autouse=True)
def offloads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the tap was told; sockets cannot be."""
    told: list[int] = []
    monkeypatch.setattr(module, "TUNSETOFFLOAD", lambda fd, flags: told.append(flags))
    return told


class Card:
    """The card of a guest, and the other end of its cable."""

    def __init__(self, without: int = 0) -> None:
        self.cable, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.cable.settimeout(5)
        self.cable.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        tap.setblocking(False)
        self.net = Net(tap.detach(), MAC, 1400)
        self.guest = Guest(self.net, without=without)
        self.guest.start()
        self.at = 0x100000

    def offer(self, *sizes: int) -> list[int]:
        """Buffers to receive into, a chain each."""
        ring, before = self.guest.rings[RX], self.guest.rings[RX].index
        heads = []
        for size in sizes:
            heads.append(ring.add([], [(self.at, size)]))
            self.places = {**getattr(self, "places", {}), heads[-1]: self.at}
            self.at += size
        if ring.wants_kick(before):
            self.guest.kick(RX)
        return heads

    def received(self, count: int = 1) -> list[bytes]:
        """What arrived in ``count`` chains."""
        found: list[bytes] = []
        end = time.monotonic() + 5
        while len(found) < count and time.monotonic() < end:
            for head, written in self.guest.rings[RX].collect():
                found.append(bytes(self.guest.memory.read(self.places[head], written)))
            self.guest.line.wait(0.01)
        assert len(found) == count
        return found

    def send(self, *parts: bytes) -> None:
        ring, before = self.guest.rings[TX], self.guest.rings[TX].index
        places = []
        for part in parts:
            self.guest.memory.write(self.at, part)
            places.append((self.at, len(part)))
            self.at += len(part)
        ring.add(places, [])
        if ring.wants_kick(before):
            self.guest.kick(TX)

    def close(self) -> None:
        self.guest.close()
        self.cable.close()


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card()
    yield card
    card.close()


@pytest.fixture
def plain() -> Iterator[Card]:
    """With a driver that cannot merge buffers."""
    card = Card(without=1 << module.MRG_RXBUF)
    yield card
    card.close()


def test_configuration(card: Card) -> None:
    assert card.net.config() == MAC + struct.pack("<HHH", 1, 1, 1400)


@pytest.mark.parametrize("mac", [b"", b"\1\0\0\0\0\1", bytes(7)])
def test_other_hardware_addresses(mac: bytes) -> None:
    with pytest.raises(Invalid, match="hardware address"):
        Net(-1, mac)


@pytest.mark.parametrize("mtu", [0, 67, 65522])
def test_other_mtus(mtu: int) -> None:
    with pytest.raises(Invalid, match=f"MTU of {mtu} bytes"):
        Net(-1, MAC, mtu)


def test_what_is_sent_comes_out_of_the_tap(card: Card) -> None:
    card.send(HEAD, b"x" * 14, b"payload")
    assert card.cable.recv(1 << 17) == HEAD + b"x" * 14 + b"payload"
    end = time.monotonic() + 5
    while not card.net.counts.all()["tx_bytes"] and time.monotonic() < end:
        time.sleep(0.001)
    assert card.net.counts.all()["tx_bytes"] == 21


def test_frames_that_are_none_are_dropped(card: Card) -> None:
    card.send(HEAD + b"short")
    card.send(HEAD + bytes(FRAME_MAX))
    card.send(HEAD + bytes(14))
    assert card.cable.recv(1 << 17) == HEAD + bytes(14)
    end = time.monotonic() + 5
    while card.net.counts.tx_frames < 1 and time.monotonic() < end:  # it is counted once it is out
        time.sleep(0.001)
    assert (card.net.counts.tx_dropped, card.net.counts.tx_frames) == (2, 1)


def test_what_the_tap_has_is_received(card: Card) -> None:
    card.offer(2048, 2048)
    card.cable.send(HEAD + b"a" * 60)
    card.cable.send(HEAD + b"b" * 60)
    first, second = card.received(2)
    assert first == HEAD[:10] + b"\1\0" + b"a" * 60
    assert second[HEADER:] == b"b" * 60
    assert card.net.counts.all() | {"tx_frames": 0} == {
        "rx_frames": 2, "rx_bytes": 120, "rx_dropped": 0, "tx_frames": 0, "tx_bytes": 0, "tx_dropped": 0,
    }  # fmt: skip


def test_a_large_frame_goes_over_several_buffers(card: Card) -> None:
    card.offer(*[1536] * 50)
    payload = os.urandom(60000)
    card.cable.send(HEAD + payload)
    count = -(-60012 // 1536)
    parts = card.received(count)
    assert parts[0][:HEADER] == HEAD[:10] + count.to_bytes(2, "little")
    assert b"".join(parts)[HEADER:] == payload
    card.cable.send(HEAD + b"next" * 10)
    assert card.received()[0][HEADER:] == b"next" * 10


def test_a_frame_waits_for_room(card: Card) -> None:
    card.offer(1536, 1536)
    payload = os.urandom(5000)
    card.cable.send(HEAD + payload)
    card.cable.send(HEAD + b"behind it" * 5)
    time.sleep(0.05)
    assert not card.guest.rings[RX].collect()
    card.offer(1536, 1536, 1536)
    parts = card.received(5)
    assert b"".join(parts[:4])[HEADER:] == payload
    assert parts[4][HEADER:] == b"behind it" * 5


def test_a_frame_that_never_fits_is_dropped(card: Card) -> None:
    card.offer(*[128] * 64)
    card.cable.send(HEAD + bytes(20000))
    card.cable.send(HEAD + b"small" * 4)
    assert card.received()[0][HEADER:] == b"small" * 4
    assert card.net.counts.rx_dropped == 1


def test_the_parts_of_a_frame_are_given_back_at_once(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that polls and finds the first part alone takes the frame for broken, and the next part for a frame."""
    given: list[int] = []
    together = Queue.push_together

    def counted(queue: Queue, chains: Iterable[tuple[Chain, int]]) -> None:
        chains = list(chains)
        given.append(len(chains))
        together(queue, chains)

    monkeypatch.setattr(Queue, "push_together", counted)
    card.offer(*[64] * 8)
    card.cable.send(HEAD + bytes(14) + bytes(200))
    assert len(b"".join(card.received(4))) == len(HEAD) + 214
    assert given == [4]


def test_without_buffers_the_tap_is_left_alone(card: Card) -> None:
    for number in range(5):
        card.cable.send(HEAD + bytes([number]) * 60)
    time.sleep(0.02)
    card.offer(*[1536] * 5)
    assert [part[HEADER] for part in card.received(5)] == [0, 1, 2, 3, 4]


def test_buffers_that_cannot_be_merged(plain: Card) -> None:
    plain.offer(65562, 100)
    plain.cable.send(HEAD + bytes(65000))
    plain.cable.send(HEAD + bytes(300))  # more than the driver has room for
    parts = plain.received(2)
    assert parts[0] == HEAD[:10] + b"\1\0" + bytes(65000)
    assert parts[1] == b""
    assert plain.net.counts.rx_dropped == 1


def test_buffers_that_are_no_room_come_back_empty(card: Card) -> None:
    card.offer(4, 1536)
    card.cable.send(HEAD + bytes(60))
    assert [len(part) for part in card.received(2)] == [0, 72]


def test_frames_wait_while_the_machine_is_saved(card: Card) -> None:
    card.offer(1536, 1536, 1536)
    card.cable.send(HEAD + b"1" * 60)
    card.received()
    state = card.guest.transport.save()
    card.cable.send(HEAD + b"2" * 60)
    time.sleep(0.02)
    assert not card.guest.rings[RX].collect()
    assert card.net.started[RX].save() == (1, 1)
    card.guest.transport.resume()
    assert card.received()[0][HEADER:] == b"2" * 60
    assert set(state) == {"transport", "device.net"}


def test_state_of_another_kind_is_refused() -> None:
    net = Net(os.open("/dev/null", os.O_RDWR), MAC)
    with pytest.raises(Invalid, match="3 bytes instead of 10"):
        net.restore({"net": b"abc"})
    net.close()


def test_offloads_are_as_they_were_when_saved(card: Card, offloads: list[int]) -> None:
    assert ask(card, bytes([control.GUEST_OFFLOADS, 0]) + (1 << 1).to_bytes(8, "little")) == control.OK
    state = card.net.save()
    net = Net(os.open("/dev/null", os.O_RDWR), MAC)
    net.restore(state)
    loop = Loop("other", lambda error: None)
    net.start(tuple(Unused(card.guest.line) for _ in net.queues), card.net._agreed, loop)
    assert offloads[-1] == 1
    net.stop()
    loop.close()
    net.close()


def ask(card: Card, command: bytes) -> int:
    answer, written = card.guest.ask(CONTROL, command, 1)
    assert written == 1
    return answer[0]


def test_control_commands(card: Card, offloads: list[int]) -> None:
    assert ask(card, bytes([control.RX, 0, 1])) == control.OK
    assert ask(card, bytes([control.VLAN, 0, 7, 0])) == control.OK
    assert ask(card, bytes([control.GUEST_OFFLOADS, 0]) + (1 << 1 | 1 << 7).to_bytes(8, "little")) == control.OK
    assert offloads[-1] == 3
    assert ask(card, bytes([control.GUEST_OFFLOADS, 0]) + (1 << 40).to_bytes(8, "little")) == control.ERR
    assert ask(card, b"\xff\xff") == control.ERR
    assert ask(card, bytes(200)) == control.ERR


def test_segments_without_checksums_are_not_asked_of_the_tap(card: Card, offloads: list[int]) -> None:
    assert offloads == [15]
    for bits, flags in ((1 << 7, 0), (1 << 1 | 1 << 9, 1), (1 << 1 | 1 << 8 | 1 << 9, 13)):
        assert ask(card, bytes([control.GUEST_OFFLOADS, 0]) + bits.to_bytes(8, "little")) == control.OK
        assert offloads[-1] == flags


def test_the_cable_and_the_announcement(card: Card) -> None:
    loop = card.guest.loop
    loop.call(lambda: card.net.set_link(False))
    assert card.guest.read(mmio.CONFIG + 6) & 0xFFFF == 0
    assert card.guest.interrupt() & mmio.CONFIG_CHANGED
    loop.call(lambda: card.net.set_link(True))
    loop.call(card.net.announce)
    assert card.guest.read(mmio.CONFIG + 6) & 0xFFFF == 3
    assert ask(card, bytes([control.ANNOUNCE, 0])) == control.OK
    assert card.guest.read(mmio.CONFIG + 6) & 0xFFFF == 1


@given(st.binary(max_size=80))
@example(bytes([control.ANNOUNCE, 0, 0, 0, 0]))  # has nothing that belongs to it
def test_any_command_is_parsed_or_refused(command: bytes) -> None:
    asked = control.parse(command)
    if isinstance(asked, control.Offloads):
        assert len(command) == 10
    elif asked is not None:
        assert 2 <= len(command) <= 4
