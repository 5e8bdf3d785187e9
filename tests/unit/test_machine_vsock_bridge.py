"""Bridges between a stream and descriptors: every byte once and in order, both closes, and nobody's memory grows."""

from __future__ import annotations

import os
import socket
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.machine.devices.virtio.vsock import BUFFER, SEND_MAX, Bridge, Connection, UnixSide, Vsock
from mamushka.machine.devices.virtio.vsock.packet import (
    BOTH,
    CREDIT_UPDATE,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
)
from mamushka.machine.devices.virtio.vsock.unix import BACKLOG, parse
from tests.vsock import CID, Driver


class Joined:
    """A driver whose connections from port 2 to port 1 are bridged to given descriptors."""

    def __init__(self, **fds: int) -> None:
        self.closed: list[bool] = []
        self.vsock = Vsock(CID)
        self.driver = Driver(self.vsock, room=1)
        self.vsock.listen(1, lambda connection: self.join(connection, **fds))
        self.driver.send(REQUEST, 1, 2)
        assert [packet.op for packet in self.driver.packets()] == ["response"]
        self.driver.give(16)

    def join(self, connection: Connection, **fds: int) -> None:
        self.connection = connection
        self.bridge = Bridge(self.driver.loop, connection, closed=self.closed.append, **fds)

    def send(self, op: int, data: bytes = b"", **fields: int) -> None:
        self.driver.send(op, 1, 2, data, **fields)

    def got(self) -> list[tuple[str, bytes, int]]:
        self.driver.turn()
        return [(packet.op, packet.data, packet.flags) for packet in self.driver.packets()]


@pytest.fixture
def fds() -> Iterator[set[str]]:
    before = set(os.listdir("/proc/self/fd"))
    yield before
    after = set(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before), f"descriptors leak: {after - before}"


def test_stdio_over_pipes(fds: set[str]) -> None:
    stdin, theirs_in = os.pipe()
    theirs_out, stdout = os.pipe()
    joined = Joined(reading=stdin, writing=stdout)
    os.write(theirs_in, b"to the guest")
    assert joined.got() == [("rw", b"to the guest", 0)]
    joined.send(RW, b"from ")
    joined.send(RW, b"it")
    assert os.read(theirs_out, 100) == b"from it"
    os.close(theirs_in)
    assert joined.got() == [("shutdown", b"", NO_SEND)]
    joined.send(RW, b" and more")
    joined.send(SHUTDOWN, flags=NO_SEND)
    assert os.read(theirs_out, 100) == b" and more" and os.read(theirs_out, 100) == b""
    assert joined.closed == [False]
    assert joined.got() == [("shutdown", b"", BOTH)]
    joined.send(RST)
    assert joined.vsock.connections == ()
    os.close(theirs_out)
    joined.driver.close()


def test_a_reader_that_is_slow_stops_the_guest_and_loses_nothing(fds: set[str]) -> None:
    theirs, ours = os.pipe()
    joined = Joined(writing=ours)
    assert joined.got() == [("shutdown", b"", NO_SEND)]
    sent = os.urandom(65536 * 5)  # a pipe takes one, our buffer four
    for at in range(0, len(sent), 65536):
        joined.send(RW, sent[at : at + 65536])
    assert joined.connection.held == BUFFER
    assert joined.driver.turn() == 0, "it spins"
    joined.send(SHUTDOWN, flags=BOTH)
    found = b""
    while piece := os.read(theirs, 10_000):
        found += piece
        joined.driver.turn()
    assert found == sent and joined.closed == [False]
    os.close(theirs)
    joined.driver.close()


def test_a_guest_that_is_slow_stops_the_host_and_loses_nothing(fds: set[str]) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    joined = Joined(reading=ours)
    joined.got()
    sent, found, forwarded = os.urandom(1 << 20), b"", 0
    rest = sent
    while len(found) < len(sent):
        try:
            rest = rest[os.write(theirs, rest) :] if rest else rest
        except BlockingIOError:
            pass
        got = b"".join(data for _, data, _ in joined.got())
        assert joined.connection.room >= 0 and len(joined.connection._unsent) <= SEND_MAX
        found += got
        forwarded += len(got)
        joined.driver.give(16 - joined.driver.room)
        joined.send(CREDIT_UPDATE, alloc=20_000, forwarded=forwarded)
    assert found == sent
    joined.bridge.close()
    os.close(theirs)
    joined.driver.close()


def test_a_pipe_that_nobody_reads_makes_the_guests_writes_fail(fds: set[str]) -> None:
    theirs, ours = os.pipe()
    stdin, theirs_in = os.pipe()
    joined = Joined(reading=stdin, writing=ours)
    os.close(theirs)
    joined.send(RW, b"x")
    assert joined.got() == [("shutdown", b"", NO_RECEIVE)]
    os.write(theirs_in, b"on")
    assert joined.got() == [("rw", b"on", 0)]
    joined.send(SHUTDOWN, flags=NO_RECEIVE)
    with pytest.raises(BrokenPipeError):
        os.write(theirs_in, b"nobody")
    assert joined.closed == [False]
    os.close(theirs_in)
    joined.driver.close()


def test_half_closes_of_a_socket(fds: set[str]) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    joined = Joined(reading=fd, writing=fd)
    joined.send(RW, b"all")
    joined.send(SHUTDOWN, flags=NO_SEND)
    assert theirs.recv(10) == b"all" and theirs.recv(10) == b""
    theirs.sendall(b"answer")
    theirs.shutdown(socket.SHUT_WR)
    assert joined.got() == [("rw", b"answer", 0), ("shutdown", b"", BOTH)]
    assert joined.closed == [False]
    theirs.close()
    joined.driver.close()


def test_a_terminal(fds: set[str]) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    joined = Joined(reading=master, writing=master)
    joined.send(RW, b"prompt")
    assert os.read(slave, 6) == b"prompt"
    os.write(slave, b"out\n")
    while not (got := joined.got()):  # the kernel passes it on in a thread of its own
        time.sleep(0.001)
    assert got == [("rw", b"out\n", 0)]
    os.close(slave)
    joined.driver.turn()
    assert joined.got()[0][0] == "shutdown"
    joined.send(SHUTDOWN, flags=BOTH)
    assert joined.closed == [False]
    joined.driver.close()


def test_files_which_epoll_refuses(fds: set[str], tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "in").write_bytes(content)
    joined = Joined(
        reading=os.open(tmp_path / "in", os.O_RDONLY), writing=os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    )
    joined.send(RW, b"kept")
    found = b""
    while len(found) < len(content):
        found += b"".join(data for _, data, _ in joined.got())
        joined.driver.give(16 - joined.driver.room)
        joined.send(CREDIT_UPDATE, alloc=1 << 18, forwarded=len(found))
    assert found == content
    joined.send(SHUTDOWN, flags=BOTH)
    assert (tmp_path / "out").read_bytes() == b"kept"
    assert joined.closed == [False]
    joined.driver.close()


def test_shared_descriptors_stay_as_they_are(fds: set[str]) -> None:
    stdin, theirs_in = os.pipe()
    theirs_out, stdout = os.pipe()
    joined = Joined(reading=stdin, writing=stdout, shared=True)
    assert os.get_blocking(stdin) and os.get_blocking(stdout)
    for _ in range(3):
        joined.send(RW, bytes(65536))
    assert joined.driver.turn() == 0, "it spins, or would have waited"
    found = 0
    while found < 3 * 65536:
        found += len(os.read(theirs_out, 65536))
        joined.driver.turn()
    os.write(theirs_in, b"in")
    assert ("rw", b"in", 0) in joined.got()
    joined.bridge.close()
    assert joined.closed == [False]
    os.close(theirs_in)
    os.close(theirs_out)
    joined.driver.close()


def test_a_break_is_told_after_what_came_before(fds: set[str]) -> None:
    theirs, ours = os.pipe()
    joined = Joined(writing=ours)
    for _ in range(2):
        joined.send(RW, bytes(65536))
    joined.send(RST)
    assert joined.closed == []
    found = 0
    while piece := os.read(theirs, 65536):
        found += len(piece)
        joined.driver.turn()
    assert found == 2 * 65536 and joined.closed == [True]
    os.close(theirs)
    joined.driver.close()


# The Unix side


@pytest.fixture
def side(tmp_path: Path) -> Iterator[tuple[Driver, UnixSide, str]]:
    vsock = Vsock(CID)
    made = Driver(vsock)
    unix = UnixSide(made.loop, vsock, str(tmp_path / "v.sock"))
    made.give(16)
    yield made, unix, unix.path
    unix.close()
    assert not os.path.exists(unix.path)
    made.close()


def dial(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
    peer.connect(path)
    return peer


def test_the_host_connects_to_the_guest(side: tuple[Driver, UnixSide, str]) -> None:
    guest, _, path = side
    assert os.stat(path).st_mode & 0o777 == 0o600
    with dial(path) as peer:
        peer.sendall(b"CONN")
        guest.turn()
        peer.sendall(b"ECT 52\nbehind it")
        guest.turn()
        (asked,) = guest.packets()
        assert (asked.op, asked.guest_port) == ("request", 52)
        guest.send(RESPONSE, asked.host_port, 52)
        assert peer.recv(100) == b"OK %d\n" % asked.host_port
        guest.turn()
        assert [packet.data for packet in guest.packets()] == [b"behind it"]
        guest.send(RW, asked.host_port, 52, b"hello")
        assert peer.recv(100) == b"hello"
    guest.turn()
    guest.send(SHUTDOWN, asked.host_port, 52, flags=BOTH)
    assert guest.vsock.connections == ()


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", b"CONNECT x\n", b"CONNECT 4294967295\n", b"x" * 64])
def test_what_is_no_line_is_hung_up_on(side: tuple[Driver, UnixSide, str], line: bytes) -> None:
    guest, _, path = side
    with dial(path) as peer:
        peer.sendall(line)
        guest.turn()
        with pytest.raises(ConnectionResetError):  # what it wrote was not all read
            assert peer.recv(1) == b"" and peer.recv(1) == b"" and line.endswith(b"\n")
            raise ConnectionResetError
    assert guest.vsock.connections == ()


def test_a_refusal_hangs_up(side: tuple[Driver, UnixSide, str]) -> None:
    guest, _, path = side
    with dial(path) as peer:
        peer.sendall(b"CONNECT 9\n")
        guest.turn()
        (asked,) = guest.packets()
        guest.send(RST, asked.host_port, 9)
        assert peer.recv(1) == b""


def test_those_who_say_nothing_are_bounded(side: tuple[Driver, UnixSide, str]) -> None:
    guest, unix, path = side
    peers = []
    for _ in range(BACKLOG + 5):
        peers.append(dial(path))
        guest.turn()
    assert len(unix._asking) == BACKLOG and guest.turn() == 0
    assert peers[-1].recv(1) == b""
    for peer in peers:
        peer.close()
    for _ in range(3):
        guest.turn()
    assert not unix._asking


def test_the_guest_connects_to_the_host(side: tuple[Driver, UnixSide, str]) -> None:
    guest, _, path = side
    guest.send(REQUEST, 7, 5000)
    assert [packet.op for packet in guest.packets()] == ["rst"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_7")
        listener.listen()
        guest.send(REQUEST, 7, 5000)
        assert [packet.op for packet in guest.packets()] == ["response"]
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"welcome")
            guest.turn()
            assert [packet.data for packet in guest.packets()] == [b"welcome"]
            guest.send(RW, 7, 5000, b"thanks")
            assert peer.recv(100) == b"thanks"


def test_lines() -> None:
    assert [parse(line) for line in (b"CONNECT 0\n", b"CONNECT 52\r\n", b"CONNECT -1\n", b"CONNECT \n", b"\n")] == [
        0, 52, -1, -1, -1,
    ]  # fmt: skip
