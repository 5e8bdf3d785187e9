"""The network card on a real tap, with a driver double: frames of the host's kernel in both directions.

Each test runs with the frames moved by the process, and by vhost-net where there is one.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from mamushka.linux.rtnetlink import find_link, link_up, new_address, open_route
from mamushka.linux.tun import HEADER, open_tap
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.net import Net
from mamushka.machine.devices.virtio.net.device import GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF
from mamushka.machine.memory import Memory, shared_region
from mamushka.network.namespace import Entered, new_namespace
from tests.virtio import Guest

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.lab]

MAC, HOST, GUEST = bytes.fromhex("02aabbccddee"), "192.0.2.1", "192.0.2.2"
RX, TX = 0, 1
TSO = 1 << GUEST_TSO4 | 1 << GUEST_TSO6


class World:
    """A namespace with a tap, whose other end is a guest's card."""

    def __init__(self, carried_by: str, without: int = 0) -> None:
        self.namespace = new_namespace({})
        with Entered(self.namespace):
            tap, name = open_tap("tap0")
            self.raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))  # for experiments
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with open_route() as route:
                link = find_link(route, name)
                assert link is not None
                self.mac = link.address
                route.request([new_address(link.index, socket.inet_aton(HOST), 24), link_up(link.index)])
            self.raw.bind((name, 0x88B5))
        self.raw.settimeout(5)
        memory = Memory((shared_region(0, 4 << 20), shared_region(4 << 30, 4 << 20)))
        self.net = Net(tap, MAC, memory=memory if carried_by == "vhost-net" else None)
        if self.net.carried_by != carried_by:
            self.net.close()
            pytest.skip("needs /dev/vhost-net: modprobe vhost_net, as the lab has it")
        self.guest = Guest(self.net, memory=memory, without=without)
        self.guest.start()
        self.ring, self.next = self.guest.rings[RX], 4 << 30
        self.places: dict[int, int] = {}
        self.parts: list[bytes] = []

    def offer(self, count: int, size: int = 2048) -> None:
        before = self.ring.index
        for _ in range(count):
            self.places[self.ring.add([], [(self.next, size)])] = self.next
            self.next += size
        if self.ring.wants_kick(before):
            self.guest.kick(RX)

    def take(self) -> int:
        """Take the buffers that were used since; how many."""
        used = self.ring.collect()
        self.parts += [bytes(self.guest.memory.read(self.places.pop(head), written)) for head, written in used]
        return len(used)

    def received(self) -> bytes:
        """The next frame for us with its header; what else the host says for itself is passed over."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            self.take()
            while self.parts and (count := self.count()) <= len(self.parts):
                frame, self.parts = b"".join(self.parts[:count]), self.parts[count:]
                if frame[HEADER : HEADER + 6] == MAC:
                    return frame
                self.offer(count)
            time.sleep(0.002)
        raise TimeoutError("no frame came")

    def count(self) -> int:
        """How many buffers the frame at hand takes. vhost before Linux 6.14 says zero where they cannot be merged."""
        return int(struct.unpack_from("<H", self.parts[0], 10)[0]) or 1

    def send(self, frame: bytes, header: bytes = bytes(HEADER)) -> None:
        ring, before = self.guest.rings[TX], self.guest.rings[TX].index
        self.guest.memory.write(0x1000, header + frame)
        ring.add([(0x1000, HEADER), (0x1000 + HEADER, len(frame))], [])
        if ring.wants_kick(before):
            self.guest.kick(TX)
        end = time.monotonic() + 5
        while not ring.collect():
            assert time.monotonic() < end, "the frame was not taken"
            time.sleep(0.001)

    def neighbour(self) -> None:
        """Answer the host, which asks where the guest is."""
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + MAC + socket.inet_aton(GUEST)
        arp += self.mac + socket.inet_aton(HOST)
        self.send(self.mac + MAC + b"\x08\x06" + arp)

    def close(self) -> None:
        self.guest.close()
        self.raw.close()
        self.udp.close()
        os.close(self.namespace)


@pytest.fixture(params=["process", "vhost-net"])
def carried_by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(carried_by: str) -> Iterator[World]:
    world = World(carried_by)
    yield world
    world.close()


def test_a_frame_of_the_guests_reaches_the_host(world: World) -> None:
    world.send(b"\xff" * 6 + MAC + b"\x88\xb5" + b"hello host".ljust(50, b"."))
    assert world.raw.recv(2000)[14:24] == b"hello host"


def test_a_frame_of_the_hosts_reaches_the_guest(world: World) -> None:
    world.offer(16)
    world.raw.send(MAC + world.mac + b"\x88\xb5" + b"hello guest".ljust(50, b"."))
    assert world.received()[HEADER + 14 :][:11] == b"hello guest"


def test_checksums_are_left_to_the_driver(world: World) -> None:
    """What the host's kernel sends is unfinished: NEEDS_CSUM, and from where to where. 5.1.6.4."""
    world.offer(16)
    world.udp.sendto(b"datagram", (GUEST, 9))
    world.neighbour()
    frame = world.received()
    flags, kind, _, _, start, offset = struct.unpack_from("<BBHHHH", frame)
    assert (flags, kind, start, offset) == (1, 0, 34, 6)
    assert frame.endswith(b"datagram")


def test_a_driver_that_takes_nothing_unfinished(carried_by: str) -> None:
    world = World(carried_by, without=1 << GUEST_CSUM | TSO)
    try:
        world.offer(16)
        world.udp.sendto(b"datagram", (GUEST, 9))
        world.neighbour()
        assert world.received()[0] == 0
    finally:
        world.close()


def test_buffers_that_cannot_be_merged(carried_by: str) -> None:
    world = World(carried_by, without=1 << MRG_RXBUF | TSO)
    try:
        world.offer(16)
        for text in (b"one", b"two"):
            world.raw.send(MAC + world.mac + b"\x88\xb5" + text.ljust(50, b"."))
            assert world.received()[HEADER + 14 :][:3] == text
    finally:
        world.close()


def test_a_thousand_frames_in_order(world: World) -> None:
    for number in range(1000):
        if number % 16 == 0:
            world.offer(16)
        world.raw.send(MAC + world.mac + b"\x88\xb5" + struct.pack("<I", number).ljust(50, b"."))
        if number % 16 == 15:
            for expected in range(number - 15, number + 1):
                assert struct.unpack_from("<I", world.received(), HEADER + 14)[0] == expected
            if world.next > (4 << 30) + (3 << 20):
                world.next = 4 << 30


def test_goes_on_after_a_reset_and_after_being_saved(world: World) -> None:
    world.offer(4)
    world.raw.send(MAC + world.mac + b"\x88\xb5" + b"before".ljust(50, b"."))
    assert b"before" in world.received()
    world.guest.transport.save()
    world.take()  # what the host said for itself until then
    world.raw.send(MAC + world.mac + b"\x88\xb5" + b"while".ljust(50, b"."))
    time.sleep(0.05)
    assert not world.take(), "memory was written to after the machine was saved"
    world.guest.transport.resume()
    assert b"while" in world.received()
    world.guest.write(mmio.STATUS, 0)
    world.guest.again()
    world.ring, world.places = world.guest.rings[RX], {}
    world.offer(4)
    world.raw.send(MAC + world.mac + b"\x88\xb5" + b"after".ljust(50, b"."))
    assert b"after" in world.received()


def test_the_interrupt_comes_without_this_process(carried_by: str) -> None:
    """With vhost the line's own eventfd is written to; else the line is fired here."""
    world = World(carried_by)
    try:
        assert world.guest.line.fired == 0  # nothing is offered yet; then the host may say something for itself, too
        world.offer(4)
        world.raw.send(MAC + world.mac + b"\x88\xb5" + bytes(50))
        world.received()
        if carried_by == "vhost-net":
            assert select.select([world.guest.line.fd], [], [], 5)[0]
            assert world.guest.line.fired == 0
        else:
            assert world.guest.line.wait()  # it is fired when the frame is there already
    finally:
        world.close()
