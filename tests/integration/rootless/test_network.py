"""The way out of an ordinary user's workload, and the ways in that he publishes."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests import peers
from tests.integration.rootless.person import Person
from tests.integration.rootless.world import HOST, METADATA, NAME, NEIGHBOUR, PAGE, World
from tests.registry import free_port

pytestmark = [pytest.mark.root]
HIDE = "mount --bind /dev/null"
PROGRAMS = ("pasta", "slirp4netns")


@pytest.fixture(params=PROGRAMS)
def user(request: pytest.FixtureRequest, ordinary: Person, world: World) -> Iterator[Person]:
    """A user who has this one of the two programs."""
    peers.need(*PROGRAMS)
    other = PROGRAMS[1 - PROGRAMS.index(request.param)]
    ordinary.before = [f"{HIDE} {peers.find(other)}"]
    ordinary.file("/etc/resolv.conf", f"nameserver {NEIGHBOUR}\n")
    yield ordinary
    ordinary.before = []


@pytest.fixture
def service(user: Person, name: str) -> Iterator[tuple[str, int]]:
    """A workload with a web server on a published port: its name, and the port."""
    port = free_port()
    user.good("run", "-d", "--name", name, "-p", f"{port}:80", "busybox", "sh", "-c",
              "mkdir /www; echo inside > /www/index.html; exec httpd -f -p 80 -h /www")  # fmt: skip
    yield name, port
    user.mamushka("rm", "-f", name)


def fetch(address: str, port: int, *, patience: float = 10.0) -> bytes:
    """A page; a server that has just been started gets a moment."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/", timeout=5) as answer:
                page: bytes = answer.read()
                return page
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def ask(user: Person, address: str, port: int = 80, *options: str) -> str:
    """What a workload hears from there; empty when nothing."""
    script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc {address} {port}; true"
    return user.good("run", "--rm", *options, "busybox", "sh", "-c", script)


def test_a_workload_reaches_the_world(user: Person) -> None:
    assert PAGE.decode() in ask(user, NEIGHBOUR)


def test_names_resolve(user: Person) -> None:
    text = user.good("run", "--rm", "busybox", "nslookup", NAME)
    assert NEIGHBOUR in text.partition(NAME)[2]


def test_names_resolve_by_a_server_on_the_hosts_loopback(ordinary: Person, world: World) -> None:
    """Where both programs are there: pasta cannot ask it without opening the whole loopback."""
    peers.need(*PROGRAMS)
    user = ordinary
    user.file("/etc/resolv.conf", "nameserver 127.0.0.1\n")
    text = user.good("run", "--rm", "busybox", "sh", "-c", f"cat /etc/resolv.conf; nslookup {NAME}")
    assert "nameserver 10.0.2.3" in text and NEIGHBOUR in text.partition(NAME)[2]


def test_a_published_port_answers(service: tuple[str, int], user: Person) -> None:
    name, port = service
    assert fetch("127.0.0.1", port) == fetch(HOST, port) == b"inside\n"
    assert user.good("port", name) == f"80/tcp -> 0.0.0.0:{port}\n"
    user.good("stop", "-t", "0", name)
    with pytest.raises(OSError, match="refused"):
        fetch("127.0.0.1", port, patience=0)
    user.good("start", name)
    assert fetch("127.0.0.1", port) == b"inside\n"


def test_a_port_published_on_loopback_answers_there_alone(user: Person, name: str) -> None:
    port = free_port()
    user.good("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:80", "busybox", "sh", "-c",
              "mkdir /www; echo inside > /www/index.html; exec httpd -f -p 80 -h /www")  # fmt: skip
    assert fetch("127.0.0.1", port) == b"inside\n"
    with pytest.raises(OSError, match="refused"):
        fetch(HOST, port, patience=0)
    user.good("rm", "-f", name)


def test_a_free_port_is_chosen(user: Person, name: str) -> None:
    user.good("run", "-d", "--name", name, "-p", "80", "busybox", "sh", "-c",
              "mkdir /www; echo inside > /www/index.html; exec httpd -f -p 80 -h /www")  # fmt: skip
    port = int(user.good("port", name, "80").rpartition(":")[2])
    assert fetch("127.0.0.1", port) == b"inside\n"
    user.good("rm", "-f", name)


def test_udp_is_published(user: Person, name: str) -> None:
    port = free_port()
    server = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))\n"
    server += "while True: s.sendto(b'answer\\n', s.recvfrom(100)[1])"
    user.good("run", "-d", "--name", name, "-p", f"{port}:53/udp", "host", "python3", "-c", server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        question.settimeout(1)
        for _ in range(20):
            question.sendto(b"question\n", (HOST, port))
            try:
                assert question.recv(100) == b"answer\n"
                break
            except OSError:
                continue
        else:
            raise AssertionError("nobody answers")
    user.good("rm", "-f", name)


def test_a_port_in_use_is_refused(service: tuple[str, int], user: Person) -> None:
    assert f"port {service[1]}" in user.bad("run", "--rm", "-p", f"{service[1]}:80", "busybox", "true")


def test_a_port_of_roots_is_refused_with_the_switch(user: Person) -> None:
    said = user.bad("run", "--rm", "-p", "81:80", "busybox", "true")
    assert "port 81" in said and "net.ipv4.ip_unprivileged_port_start=81" in said


def test_the_hosts_loopback_is_out_of_reach(user: Person) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert "HTTP/1.0" in ask(user, "127.0.0.1", port, "--network", "host")  # the test itself can reach it
        for address in ("127.0.0.1", "10.0.2.2", "10.0.2.3", "0.0.0.0", "localhost"):
            assert ask(user, address, port) == "", address
    finally:
        server.shutdown()
        server.server_close()


def test_link_local_addresses_are_refused(user: Person) -> None:
    """The neighbour answers there; so it is us who refuse, and at once."""
    assert PAGE.decode() in ask(user, METADATA, 80, "--network", "host")
    assert ask(user, METADATA) == ""
    done = user.mamushka("run", "--rm", "busybox", "sh", "-c", f"nc {METADATA} 80 </dev/null")
    assert done.returncode != 0 and "ermission denied" in done.stderr


def test_nobody_inside_gets_around_the_refusal(user: Person) -> None:
    """Routes cannot be changed and raw packets not be sent, unless that was asked for."""
    assert "not permitted" in user.bad("run", "--rm", "busybox", "ip", "route", "del", "prohibit", "169.254.0.0/16")
    packet = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
    assert "Operation not permitted" in user.bad("run", "--rm", "host", "python3", "-c", packet)
    user.good("run", "--rm", "--cap-add", "NET_RAW", "host", "python3", "-c", packet)
    ping = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    user.good("run", "--rm", "host", "python3", "-c", ping)  # which needs no right


def test_workloads_share_a_network(service: tuple[str, int], user: Person) -> None:
    assert "inside" in ask(user, "127.0.0.1", 80, "--network", f"container:{service[0]}")


def test_a_killed_shim_takes_its_program_along(service: tuple[str, int], user: Person) -> None:
    name, port = service
    before = {*user.processes()}
    assert fetch("127.0.0.1", port) == b"inside\n"
    init = int(user.good("inspect", "-f", "{{.State.Pid}}", name))
    shim = _parent(init)
    (carrier,) = [pid for pid in user.processes() if _parent(pid) == shim and pid != init]
    os.kill(shim, 9)
    deadline = time.monotonic() + 5
    while carrier in user.processes():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.02)
    user.good("rm", "-f", name)
    assert not {init, shim, carrier} & {*user.processes()} and len(before) == len(user.processes()) + 3
    assert name not in user.good("ps", "-a")


def test_without_a_program_the_package_is_named(user: Person) -> None:
    user.before = [f"{HIDE} {peers.find(program)}" for program in PROGRAMS]
    said = user.bad("run", "--rm", "busybox", "true")
    assert "pasta" in said and "apt-get install passt" in said and "--network none" in said
    user.good("run", "--rm", "--network", "none", "busybox", "true")


def test_without_the_tun_device_the_remedy_is_named(user: Person) -> None:
    user.before = [*user.before, "rm /dev/net/tun"]
    said = user.bad("run", "--rm", "busybox", "true")
    assert "/dev/net/tun must be there" in said


def test_networks_between_workloads_are_refused(user: Person) -> None:
    for words in (("network", "create", "mine"), ("run", "--rm", "--network", "mine", "busybox", "true"),
                  ("run", "--rm", "--network", "name=bridge,alias=x", "busybox", "true")):  # fmt: skip
        said = user.bad(*words)
        assert "root" in said or "ordinary user" in said, words


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
