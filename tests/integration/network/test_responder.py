"""The resolver inside: neighbours' names, everybody else's names from a server outside, floods and silence."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from mamushka.network import dns, responder
from mamushka.network.address import pack
from mamushka.network.namespace import Entered
from mamushka.network.responder import Responder
from tests import peers
from tests.integration.network.conftest import OUTSIDE, Host
from tests.unit.test_network_dns import query, records

pytestmark = [pytest.mark.root, pytest.mark.network]
ELSEWHERE = "203.0.113.99"  # where no server is


class Inside:
    """A workload with a responder, and a name server outside that the test plays itself."""

    def __init__(self, host: Host, directory: str, *servers: str) -> None:
        self.host, self.path = host, directory
        self.tell([{"names": ["db", "store"], "addresses": ["172.30.0.9"]}])
        self.workload, _ = host.plug(host.network())
        with Entered(host.fd):
            self.responder = Responder(*responder.listen(self.workload.fd), f"{directory}.index", servers)
        with open(f"{directory}.index", "w") as file:
            json.dump([directory], file)

    def tell(self, members: list[object]) -> None:
        with open(f"{self.path}.new", "w") as file:
            json.dump(members, file)
        os.rename(f"{self.path}.new", self.path)

    def turn(self, timeout: float = 2.0) -> bool:
        """One turn of the shim's loop, in the host's namespace; whether there was something to do."""
        if not select.select([self.responder], [], [], timeout)[0]:
            return False
        with Entered(self.host.fd):
            self.responder.ready()
        return True

    def ask(self, message: bytes) -> bytes:
        with self.client() as client:
            client.sendto(message, ("127.0.0.11", 53))
            self.turn()
            return client.recv(65535)

    def client(self, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        client = self.workload.open("127.0.0.11", kind)
        client.settimeout(2)
        return client


@pytest.fixture
def inside(host: Host, tmp_path) -> Iterator[Inside]:
    inside = Inside(host, str(tmp_path / "names"), OUTSIDE)
    yield inside
    inside.responder.close()


def upstream(host: Host, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    return host.outside.listen(OUTSIDE, 53, kind)


def test_a_neighbours_name_is_known_and_follows_the_file(inside: Inside) -> None:
    assert records(inside.ask(query("store"))) == [(dns.A, pack("172.30.0.9"))]
    inside.tell([{"names": ["web"], "addresses": ["172.30.0.10"]}])
    assert records(inside.ask(query("web"))) == [(dns.A, pack("172.30.0.10"))]


def test_a_real_client_understands_it(inside: Inside) -> None:
    peers.need("busybox")
    busybox = peers.find("busybox")
    with Entered(inside.workload.fd):
        asking = subprocess.Popen([busybox, "nslookup", "db", "127.0.0.11"], stdout=subprocess.PIPE, text=True)
    while asking.poll() is None:
        inside.turn(0.05)
    assert asking.stdout is not None
    assert "172.30.0.9" in asking.stdout.read()


def test_other_names_are_asked_outside_under_an_identifier_of_our_own(host: Host, inside: Inside) -> None:
    server = upstream(host)
    with inside.client() as client:
        client.sendto(query("example.org", id=0x1234), ("127.0.0.11", 53))
        inside.turn()
        asked, peer = server.recvfrom(512)
        assert asked[2:] == query("example.org")[2:]
        forged = dns.answer(dns.parse(query("example.org", id=int.from_bytes(asked[:2], "big") ^ 1)), [])
        server.sendto(forged, peer)
        inside.turn()
        server.sendto(dns.answer(dns.parse(asked), [(dns.A, b"\1\2\3\4")]), peer)
        inside.turn()
        answer = client.recv(512)
    assert answer[:2] == b"\x12\x34"
    assert records(answer) == [(dns.A, b"\1\2\3\4")]


def test_a_refusal_goes_to_the_next_server_and_after_the_last_is_told(host: Host, tmp_path) -> None:
    inside = Inside(host, str(tmp_path / "names"), "127.0.0.1", OUTSIDE)
    server = upstream(host)
    try:
        with inside.client() as client:
            client.sendto(query("example.org"), ("127.0.0.11", 53))
            inside.turn()  # 127.0.0.1 refuses
            inside.turn()
            assert server.recvfrom(512)
            server.close()
            client.sendto(query("second.example"), ("127.0.0.11", 53))
            for _ in range(3):
                inside.turn()
            assert dns.parse(client.recv(512)).flags & 15 == dns.SERVFAIL
    finally:
        inside.responder.close()


def test_a_client_that_asks_again_reaches_the_next_server(host: Host, tmp_path) -> None:
    inside = Inside(host, str(tmp_path / "names"), ELSEWHERE, OUTSIDE)
    server = upstream(host)
    try:
        with inside.client() as client:
            for _ in range(2):
                client.sendto(query("example.org"), ("127.0.0.11", 53))
                inside.turn()
            asked, peer = server.recvfrom(512)
            server.sendto(dns.answer(dns.parse(asked), []), peer)
            inside.turn()
            assert dns.parse(client.recv(512)).name == "example.org"
    finally:
        inside.responder.close()


def test_without_servers_other_names_are_refused(host: Host, tmp_path) -> None:
    inside = Inside(host, str(tmp_path / "names"))
    assert dns.parse(inside.ask(query("example.org"))).flags & 15 == dns.REFUSED
    inside.responder.close()


def test_streams_carry_questions_of_both_kinds(host: Host, inside: Inside) -> None:
    server = upstream(host, socket.SOCK_STREAM)
    with inside.client(socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.11", 53))
        two = [query("db"), query("example.org", id=5)]
        client.sendall(b"".join(len(item).to_bytes(2, "big") + item for item in two))
        for _ in range(5):
            inside.turn(0.2)
        upstream_side, _ = server.accept()
        with upstream_side:
            upstream_side.settimeout(2)
            inside.turn(0.2)
            asked = upstream_side.recv(512)[2:]
            large = dns.answer(dns.parse(asked), [(dns.A, bytes(4))] * 500, limit=65535)
            upstream_side.sendall(len(large).to_bytes(2, "big") + large)
            while inside.turn(0.2):
                pass
        received = b""
        while len(received) < 2 + 36 + 2 + len(large):
            received += client.recv(65535)
        first = int.from_bytes(received[:2], "big")
        assert records(received[2 : 2 + first]) == [(dns.A, pack("172.30.0.9"))]
        assert len(records(received[4 + first :])) == 500


def test_a_stream_to_nobody_is_told(host: Host, inside: Inside) -> None:
    with inside.client(socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.11", 53))
        message = query("example.org")
        client.sendall(len(message).to_bytes(2, "big") + message)
        while inside.turn(0.2):
            pass
        assert dns.parse(client.recv(512)[2:]).flags & 15 == dns.SERVFAIL


def test_a_flood_is_bounded(inside: Inside) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with inside.client() as client:
        for number in range(400):
            client.sendto(query(f"n{number}.example"), ("127.0.0.11", 53))
            if number % 20 == 0:
                inside.turn(0.1)
        while inside.turn(0.05):
            pass
    streams = []
    for _ in range(50):
        stream = inside.client(socket.SOCK_STREAM)
        stream.connect(("127.0.0.11", 53))
        streams.append(stream)
        inside.turn(0.1)
    assert (
        len(os.listdir("/proc/self/fd")) - before <= responder.PENDING_MAX + responder.SESSIONS_MAX + len(streams) + 4
    )
    for stream in streams:
        stream.close()
    while inside.turn(0.05):
        pass
    assert records(inside.ask(query("db")))


def test_rubbish_does_no_harm(inside: Inside) -> None:
    with inside.client() as client:
        for message in (b"", b"\0", bytes(12), os.urandom(512), b"\0\1\x80\0" + bytes(8), query("db")[:-1]):
            client.sendto(message, ("127.0.0.11", 53))
            inside.turn(0.2)
    assert records(inside.ask(query("db")))


def test_a_workload_may_have_a_name_server_of_its_own(inside: Inside) -> None:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        inside.workload.listen("0.0.0.0", 53, kind).close()


def test_the_time_for_an_answer(inside: Inside) -> None:
    """Not a benchmark: an answer must not wait for a clock."""
    begin = time.monotonic()
    for _ in range(20):
        inside.ask(query("db"))
    assert time.monotonic() - begin < 2
