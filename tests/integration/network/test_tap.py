"""A machine's wire into a namespace: the test reads the tap and answers as a guest would; somebody outside pings."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mamushka import plan
from mamushka.errors import Conflict, NotFound, Unsupported
from mamushka.linux.tun import HEADER, open_tap
from mamushka.network import tap
from mamushka.network.namespace import Entered, new_namespace
from mamushka.network.tap import Assigned, Fixed, Interface, Path, interfaces, join
from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.lab]

INSIDE, OUTSIDE = "192.0.2.2", "192.0.2.1"
MAC = "02:00:00:00:00:02"


class World:
    """Two namespaces with a cable between them: ``inside`` has an interface as a container engine makes one."""

    def __init__(self) -> None:
        self.inside, self.outside = new_namespace({}), new_namespace({})
        ip = peers.find("ip")
        if ip is None:
            pytest.skip("needs ip: apt-get install iproute2")
        self.ip = ip
        self.run(self.outside, "link add vout type veth peer name eth0 netns /proc/self/fd/{}", self.inside)
        self.run(self.outside, f"addr add {OUTSIDE}/24 dev vout")
        self.run(self.outside, "link set vout up")
        for command in (
            f"link set eth0 address {MAC} mtu 1400",
            f"addr add {INSIDE}/24 dev eth0",
            "addr add 2001:db8::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add 198.51.100.7 dev eth0 scope link",
            "route add 203.0.113.0/24 via 198.51.100.7 dev eth0 metric 7 onlink",
            f"route add default via {OUTSIDE}",
            "neigh add 198.51.100.7 lladdr 02:00:00:00:00:07 dev eth0 nud permanent",
        ):
            self.run(self.inside, command)

    def run(self, namespace: int, command: str, *fds: int) -> str:
        words = [word.format(*fds) for word in command.split()]
        with Entered(namespace):
            done = subprocess.run([self.ip, *words], capture_output=True, text=True, pass_fds=fds)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def ping(self, address: str = INSIDE, size: int = 56) -> bool:
        """Whether an echo comes back within a second. RFC 792."""
        with Entered(self.outside):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            body = os.urandom(4) + bytes(size)
            raw.sendto(b"\x08\0" + checksum(b"\x08\0\0\0" + body) + body, (address, 0))
            end = time.monotonic() + 1
            while (left := end - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
                packet = raw.recv(70000)
                if packet[20] == 0 and packet[24:] == body:
                    return True
        return False

    def close(self) -> None:
        os.close(self.inside)
        os.close(self.outside)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


class Guest:
    """Answers to ARP and ping out of the tap, as the owner of one address, and counts what came."""

    def __init__(self, fd: int, interface: Interface, address: str = INSIDE) -> None:
        self.fd, self.mac = fd, bytes.fromhex(interface.mac.replace(":", ""))
        self.address = socket.inet_aton(address)
        self.frames: list[bytes] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if select.select([self.fd], [], [], 0.02)[0]:
                frame = os.read(self.fd, 70000)[HEADER:]
                self.frames.append(frame)
                answer = self._answer(frame)
                if answer:
                    os.write(self.fd, bytes(HEADER) + answer)

    def _answer(self, frame: bytes) -> bytes:
        kind = struct.unpack_from("!H", frame, 12)[0]
        sender = frame[6:12]
        if kind == 0x0806 and frame[38:42] == self.address:
            body = frame[14:20] + b"\0\2" + self.mac + self.address + sender + frame[28:32]
            return sender + self.mac + frame[12:14] + body
        if kind == 0x0800 and frame[23] == 1 and frame[34] == 8 and frame[:6] == self.mac:
            echo = bytes([0, 0]) + checksum(bytes([0, 0, 0, 0]) + frame[38:]) + frame[38:]
            return sender + self.mac + frame[12:26] + frame[30:34] + frame[26:30] + echo
        return b""

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def test_what_the_guest_is_told(world: World) -> None:
    (found,) = interfaces(world.inside)
    assert found == Interface(
        "eth0",
        MAC,
        1400,
        (Assigned(INSIDE, 24), Assigned("2001:db8::2", 64)),
        (
            Path("198.51.100.7", 32, on_link=True),
            Path("203.0.113.0", 24, gateway="198.51.100.7", metric=7, on_link=True),
            Path("0.0.0.0", 0, gateway=OUTSIDE),
        ),
        (Fixed("198.51.100.7", "02:00:00:00:00:07"),),
    )


@pytest.fixture(params=[tap.REDIRECT, tap.BRIDGE])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How they are tied together; the second as on a kernel without the filters."""
    if request.param == tap.BRIDGE:

        def missing(*_: object) -> None:
            raise FileNotFoundError(2, "Specified qdisc kind is unknown")

        monkeypatch.setattr(tap.Redirect, "execute", missing)
    return str(request.param)


def test_the_guest_answers_and_nobody_else(world: World, way: str) -> None:
    assert world.ping(), "the interface itself, before"
    joined = join(world.inside, "eth0")
    assert joined.way == way
    world.run(world.outside, "neigh flush dev vout")
    assert not world.ping(), "somebody answers for a guest that does not"
    guest = Guest(joined.tap, joined.interface)
    try:
        assert world.ping()
        assert world.ping(size=1300)
        assert f"lladdr {MAC}" in world.run(world.outside, f"neigh show {INSIDE}")
    finally:
        guest.stop()
    os.close(joined.tap)
    joined.undo()
    world.run(world.outside, "neigh flush dev vout")
    assert world.ping(), "the interface itself, after"
    assert interfaces(world.inside) == (joined.interface,)
    assert "mk" not in world.run(world.inside, "-br link")


def _datagram(to: str) -> bytes:
    """A frame with an empty datagram that says where it goes; from the guest to everybody."""
    ethernet = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", ""))
    if ":" in to:
        header = b"\x60\0\0\0" + struct.pack("!HBB", 8, socket.IPPROTO_UDP, 64)
        source, target = (socket.inet_pton(socket.AF_INET6, item) for item in ("2001:db8::2", to))
        return ethernet + b"\x86\xdd" + header + source + target + bytes(8)
    start = b"\x45\0" + struct.pack("!HHHBB", 28, 0, 0, 64, socket.IPPROTO_UDP)
    ends = socket.inet_aton(INSIDE) + socket.inet_aton(to)
    return ethernet + b"\x08\0" + start + checksum(start + b"\0\0" + ends) + ends + bytes(8)


def _destination(frame: bytes) -> str:
    """Where a datagram of IP goes; empty for what is none."""
    if frame[12:14] == b"\x08\0":
        return socket.inet_ntop(socket.AF_INET, frame[30:34])
    return socket.inet_ntop(socket.AF_INET6, frame[38:54]) if frame[12:14] == b"\x86\xdd" else ""


def test_what_the_namespace_prohibits_no_guest_sends(world: World, way: str) -> None:
    """Its kernel has routes of its own, so the wire keeps to those of the namespace."""
    for forbidden in ("169.254.0.0/16", "2001:db8:5::/47"):
        world.run(world.inside, f"route add prohibit {forbidden}")
    try:
        joined = join(world.inside, "eth0")
    except Unsupported as error:
        pytest.skip(f"{error}: make lab runs it")
    with Entered(world.outside):
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with heard:
        heard.bind(("vout", 3))
        sent = ["169.254.169.254", "169.253.0.1", "169.255.0.1", "2001:db8:4:ffff::1", "2001:db8:5::1", "2001:db8:6::1"]
        passed: list[str] = []
        end = time.monotonic() + 15
        while OUTSIDE not in passed and time.monotonic() < end:  # a port of a bridge does not forward at once
            for to in (*sent, OUTSIDE):
                os.write(joined.tap, bytes(HEADER) + _datagram(to))
            while OUTSIDE not in passed and select.select([heard], [], [], 1)[0]:
                to = _destination(heard.recv(2048))  # the interface itself speaks of groups, at any time
                passed += [to] if to in (*sent, OUTSIDE) and to not in passed else []
    os.close(joined.tap)
    assert passed == ["169.253.0.1", "169.255.0.1", "2001:db8:6::1", OUTSIDE]


def test_the_tap_has_the_interfaces_mtu(world: World) -> None:
    joined = join(world.inside, "eth0")
    assert "mtu 1400" in world.run(world.inside, "link show type tun")
    os.close(joined.tap)


def test_a_second_machine_is_refused(world: World) -> None:
    joined = join(world.inside, "eth0")
    with pytest.raises(Conflict, match="eth0"):
        join(world.inside, "eth0")
    guest = Guest(joined.tap, joined.interface)
    try:
        assert world.ping(), "the first goes on"
    finally:
        guest.stop()
    os.close(joined.tap)


def test_the_next_machine_takes_over_from_one_that_was_killed(world: World) -> None:
    os.close(join(world.inside, "eth0").tap)  # nothing is undone
    joined = join(world.inside, "eth0")
    guest = Guest(joined.tap, joined.interface)
    try:
        assert world.ping()
    finally:
        guest.stop()
    os.close(joined.tap)


def test_no_such_interface(world: World) -> None:
    with pytest.raises(NotFound, match="eth1"):
        join(world.inside, "eth1")


def test_what_fails_is_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(tap.traffic, "new_redirect", refuse)
    with pytest.raises(PermissionError):
        join(world.inside, "eth0")
    assert world.ping()
    assert "mk" not in world.run(world.inside, "-br link")
    tc = peers.find("tc")
    if tc is not None:
        with Entered(world.inside):
            assert "ingress" not in subprocess.run([tc, "qdisc", "show"], capture_output=True, text=True).stdout


def test_the_plan_says_what_it_does(world: World) -> None:
    describe: Callable[[str], str] = lambda way: plan.describe(tap.steps(world.inside, "eth0", way)[1])  # noqa: E731
    assert describe(tap.REDIRECT) == (
        "create tap for eth0\nforbid the tap of eth0 what the namespace prohibits\nredirect eth0 to its tap and back"
    )
    assert describe(tap.BRIDGE) == (
        "take the addresses of eth0\ncreate tap for eth0\nforbid the tap of eth0 what the namespace prohibits\n"
        "bridge eth0 and its tap"
    )


def test_a_tap_without_wire() -> None:
    namespace = new_namespace({})
    with Entered(namespace):
        fd, name = open_tap("mk%d")
    assert name == "mk0"
    os.close(fd)
    os.close(namespace)
