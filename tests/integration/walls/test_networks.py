"""Networks: names, ports, and none, across walls: a workload does not see which wall its neighbour is behind."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.integration.walls.conftest import CONTAINER, Wall, eventually

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.network, pytest.mark.lab, pytest.mark.slow]

SERVE = "while :; do echo served | nc -l -p 80; done"


@pytest.fixture(scope="module")
def server(wall: Wall) -> Iterator[str]:
    """A workload in a network of its own, that serves at a port of the host's too; the network has its name."""
    network = "walls-net"
    assert wall("network", "create", network).returncode == 0
    name = wall.begin("-p", "127.0.0.1::80", "--", "sh", "-c", SERVE, network=network)
    yield name
    wall("rm", "-f", name)
    assert wall("network", "rm", network).returncode == 0


def test_a_published_port(wall: Wall, server: str) -> None:
    address, _, port = wall("port", server, "80").stdout.decode().split("\n")[0].rpartition(":")
    answer, end = b"", time.monotonic() + 30
    while not answer and time.monotonic() < end:
        try:
            with socket.create_connection((address, int(port)), timeout=3) as connection:
                answer = connection.recv(100)
        except OSError:
            time.sleep(0.2)
    assert answer == b"served\n"


@pytest.mark.parametrize("client", ["same", CONTAINER])
def test_names_are_resolved_in_a_network(wall: Wall, server: str, client: str) -> None:
    """Also by a container, whose neighbour may be a machine."""
    look = f"for i in 1 2 3 4 5; do nc -w 5 {server} 80 </dev/null && break; sleep 0.5; done"
    behind = wall.behind
    if client != "same":
        wall.behind = ("--runtime", client)
    try:
        done = wall.once("sh", "-c", look, network="walls-net")
    finally:
        wall.behind = behind
    assert b"served" in done.stdout, done.stderr.decode()


def test_names_are_asked_for_over_tcp(wall: Wall, server: str) -> None:
    """As programs do when an answer was too long for a datagram."""
    question = b"\x12\x34\1\0\0\1" + bytes(6) + bytes((len(server),)) + server.encode() + b"\0\0\1\0\1"
    message = "".join(f"\\{byte:03o}" for byte in (0, len(question), *question))
    ask = f"(printf '{message}'; sleep 2) | nc -w 10 127.0.0.11 53 | hexdump -ve '/1 \"%02x\"'"
    done = wall.once("sh", "-c", ask, network="walls-net")
    address = wall.show(server, '{{(index .NetworkSettings.Networks "walls-net").IPAddress}}')
    answer = done.stdout.decode()
    assert answer[4:8] == "1234" and answer.endswith(f"0004{socket.inet_aton(address).hex()}"), done


def test_it_reaches_its_neighbour_and_has_an_address(wall: Wall, server: str) -> None:
    address = wall.show(server, '{{(index .NetworkSettings.Networks "walls-net").IPAddress}}')
    assert address.encode() in wall.exec(server, "ip", "addr").stdout
    assert b"eth0" in wall.exec(server, "ip", "route").stdout


def test_it_has_names_from_the_moment_it_enters_a_network_with_any(wall: Wall, server: str) -> None:
    box = wall.begin("--", "sleep", "100000", network="bridge")
    ask = ("sh", "-c", f"nc -w 5 {server} 80 </dev/null")
    assert wall.exec(box, *ask).stdout == b""
    done = wall("network", "connect", "walls-net", box)
    assert done.returncode == 0, done.stderr.decode()
    eventually(lambda: wall.exec(box, *ask).stdout == b"served\n", "its neighbour answers to its name")
    assert b"nameserver 127.0.0.11\n" in wall.exec(box, "cat", "/etc/resolv.conf").stdout
    assert wall("rm", "-f", box).returncode == 0


def test_it_enters_and_leaves_networks_while_it_runs(wall: Wall, server: str) -> None:
    """Its neighbours answer while it is in their network, and its interface is gone afterwards; also of the first."""
    box = wall.begin("--", "sleep", "100000", network="bridge")
    assert wall("network", "create", "--subnet", "10.97.0.0/24", "walls-more").returncode == 0
    address = wall.show(server, '{{(index .NetworkSettings.Networks "walls-net").IPAddress}}')
    ask = ("sh", "-c", f"nc -w 3 {address} 80 </dev/null")
    links = ("sh", "-c", "ls /sys/class/net")
    assert wall.exec(box, *ask).stdout == b""
    for _ in range(2):  # the second time in the place that was left
        for network in ("walls-net", "walls-more"):
            done = wall("network", "connect", network, box)
            assert done.returncode == 0, done.stderr.decode()
        eventually(lambda: wall.exec(box, *ask).stdout == b"served\n", "its neighbour answers")
        assert b"10.97.0." in wall.exec(box, "ip", "addr", "show", "eth2").stdout
        assert wall.exec(box, *links).stdout.split()[:3] == [b"eth0", b"eth1", b"eth2"]
        for network in ("walls-net", "walls-more"):
            done = wall("network", "disconnect", network, box)
            assert done.returncode == 0, done.stderr.decode()
        assert wall.exec(box, *links).stdout.split()[:1] == [b"eth0"]
        assert b"eth1" not in wall.exec(box, *links).stdout
        assert wall.exec(box, *ask).stdout == b""
    assert wall("network", "disconnect", "bridge", box).returncode == 0
    assert b"eth" not in wall.exec(box, *links).stdout
    for network in ("bridge", "walls-net"):
        assert wall("network", "connect", network, box).returncode == 0
    again = wall("restart", "-t", "0", box)
    assert again.returncode == 0, again.stderr.decode()
    eventually(lambda: wall.exec(box, *ask).stdout == b"served\n", "its neighbour answers after a restart")
    wall("rm", "-f", box)
    assert wall("network", "rm", "walls-more").returncode == 0


def test_no_network(wall: Wall) -> None:
    done = wall.once("sh", "-c", "ls /sys/class/net; ping -c 1 127.0.0.1 | grep -c '1 packets received'")
    assert done.stdout == b"lo\n1\n", done.stderr.decode()
