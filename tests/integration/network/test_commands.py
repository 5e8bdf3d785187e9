"""Networks as a user meets them: commands, ports and names, and nothing left when the last one has gone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mamushka.linux.rtnetlink import links, open_route
from mamushka.network.network import scope_of
from tests import peers

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.network]


def until(true: Callable[[], object], *, patience: float = 10.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def fetch(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/hello")
        return connection.getresponse().read()
    finally:
        connection.close()


def ours(root: str) -> list[str]:
    with open_route() as route:
        return [link.name for link in links(route) if link.group == scope_of(root).group]


SERVER = "mkdir /srv; echo hello >/srv/hello; exec busybox httpd -f -p 80 -h /srv"


@pytest.fixture
def web(mamushka: Command) -> str:
    """A workload with a published port; the port that it got."""
    peers.need("busybox")
    started = mamushka("run", "-d", "--name", "web", "-p", "80", "host", "sh", "-c", SERVER)
    assert started.returncode == 0, started.stderr
    return mamushka("port", "web", "80").stdout.decode().splitlines()[0].rpartition(":")[2]


def answers(port: str) -> bool:
    try:
        return fetch(int(port)) == b"hello\n"
    except OSError:
        return False


def test_a_published_port_lives_as_long_as_its_workload(mamushka: Command, web: str, roots: tuple[str, str]) -> None:
    until(lambda: answers(web))
    received, sent = mamushka("stats", "--no-stream", "--format", "{{.NetIO}}").stdout.decode().strip().split(" / ")
    assert received != "0B" and sent != "0B"
    taken = mamushka("run", "--rm", "-p", f"{web}:80", "host", "true")
    assert taken.returncode == 125
    assert b"port is already allocated" in taken.stderr
    assert mamushka("restart", "-t", "0", "web").returncode == 0
    again = mamushka("port", "web", "80").stdout.decode().splitlines()[0].rpartition(":")[2]
    until(lambda: answers(again))
    assert mamushka("rm", "-f", "web").returncode == 0
    assert not answers(again)
    until(lambda: not ours(roots[0]))


def test_who_was_connected_while_it_ran_is_so_after_a_restart(mamushka: Command) -> None:
    """Twice: what is left of the last time's link goes with its namespace, some time later."""
    assert mamushka("network", "create", "more").returncode == 0
    assert mamushka("run", "-d", "--name", "box", "host", "sleep", "600").returncode == 0
    assert mamushka("network", "connect", "more", "box").returncode == 0
    for _ in range(2):
        again = mamushka("restart", "-t", "0", "box")
        assert again.returncode == 0, again.stderr
        assert {b"eth0", b"eth1"} <= set(mamushka("exec", "box", "ls", "/sys/class/net").stdout.split())
    assert mamushka("rm", "-f", "box").returncode == 0
    assert mamushka("network", "rm", "more").returncode == 0


def test_who_is_connected_while_it_runs_has_names_from_then_on(mamushka: Command, roots: tuple[str, str]) -> None:
    """As soon as one of its networks has any; what its program has made of resolv.conf stays."""
    assert mamushka("network", "create", "app").returncode == 0
    assert mamushka("run", "-d", "--name", "neighbour", "--network", "app", "host", "sleep", "600").returncode == 0

    def knows(box: str) -> bool:
        return mamushka("exec", box, "getent", "hosts", "neighbour").returncode == 0

    def shows(box: str) -> bytes:
        return mamushka("exec", box, "cat", "/etc/resolv.conf").stdout

    words = ("-d", "--dns-option", "timeout:1", "--dns-option", "attempts:1", "--restart", "always")
    for box, more in (("plain", ()), ("apart", ("--userns", "private")), ("changed", ())):
        done = mamushka("run", "--name", box, *words, *more, "host", "sleep", "600")
        assert done.returncode == 0, done.stderr
    time.sleep(0.05)  # a file's time is that of the kernel's last tick
    assert mamushka("exec", "changed", "sh", "-c", "echo '# mine' >> /etc/resolv.conf").returncode == 0
    mine = shows("changed")
    for box in ("plain", "apart", "changed"):
        assert not knows(box)
        done = mamushka("network", "connect", "app", box)
        assert done.returncode == 0, done.stderr
    for box in ("plain", "apart"):
        assert knows(box), shows(box)
        assert b"nameserver 127.0.0.11\n" in shows(box) and b"options timeout:1 attempts:1\n" in shows(box)
    assert not knows("changed") and shows("changed") == mine
    # Out of it and in again, and by another process of its own, which the shim starts.
    assert mamushka("network", "disconnect", "app", "plain").returncode == 0
    assert not knows("plain")
    assert mamushka("network", "connect", "app", "plain").returncode == 0
    assert knows("plain")
    first = mamushka("inspect", "-f", "{{.State.Pid}}", "plain").stdout
    os.kill(int(first), signal.SIGKILL)
    until(lambda: mamushka("inspect", "-f", "{{.State.Pid}}", "plain").stdout not in (first, b"0\n"))
    until(lambda: knows("plain"))
    assert mamushka("restart", "-t", "0", "changed").returncode == 0
    assert knows("changed")
    assert mamushka("rm", "-f", "neighbour", "plain", "apart", "changed").returncode == 0
    assert mamushka("network", "rm", "app").returncode == 0
    until(lambda: not ours(roots[0]))  # no link, and so no bridge, of those that came later either


def test_names_and_aliases_are_known_to_neighbours(mamushka: Command) -> None:
    peers.need("busybox")
    assert mamushka("network", "create", "app").returncode == 0
    assert mamushka("run", "-d", "--name", "db", "--network", "app", "--network-alias", "store", "host", "sleep", "60")
    told = json.loads(mamushka("inspect", "db").stdout)[0]["NetworkSettings"]["Networks"]["app"]["IPAddress"]
    for name in ("db", "store"):
        found = mamushka("run", "--rm", "--network", "app", "host", "busybox", "nslookup", name)
        assert told.encode() in found.stdout, (found.stdout, found.stderr)
    assert b"active endpoints" in mamushka("network", "rm", "app").stderr
    assert mamushka("rm", "-f", "db").returncode == 0
    assert mamushka("network", "rm", "app").returncode == 0


def test_the_modes_without_a_network_of_their_own(mamushka: Command, web: str) -> None:
    def names(*options: str) -> set[str]:
        done = mamushka("run", "--rm", *options, "host", "ls", "/sys/class/net")
        assert done.returncode == 0, done.stderr
        return set(done.stdout.decode().split()) - {"bonding_masters"}

    assert names() >= {"lo", "eth0"}
    assert "eth0" not in names("--network", "none")
    shared = mamushka("run", "--rm", "--network", "container:web", "host", "busybox", "wget", "-qO-", "127.0.0.1/hello")
    assert shared.stdout == b"hello\n", shared.stderr
    lan = mamushka("run", "--rm", "--network", "host", "host", "busybox", "wget", "-qO-", f"127.0.0.1:{web}/hello")
    assert lan.stdout == b"hello\n", lan.stderr


def test_users_of_their_own_have_networks_too(mamushka: Command) -> None:
    """Port, names, exec and restarts, and the root inside is nobody outside and owns its network."""
    peers.need("busybox")
    assert mamushka("network", "create", "apart").returncode == 0
    words = ("-d", "--userns", "private", "--network", "apart", "--name", "web", "-p", "80", "--restart", "on-failure")
    counted = f"echo . >>/starts; test $(wc -l </starts) -gt 1 || exit 3; {SERVER}"
    started = mamushka("run", *words, "host", "sh", "-c", counted)
    assert started.returncode == 0, started.stderr
    port = mamushka("port", "web", "80").stdout.decode().splitlines()[0].rpartition(":")[2]
    until(lambda: answers(port))
    script = "cat /proc/self/uid_map; ip link set lo mtu 1400 && ip -o link show lo"
    inside = mamushka("exec", "--privileged", "web", "sh", "-c", script)
    assert inside.returncode == 0 and b"mtu 1400" in inside.stdout, inside.stderr
    first, outside, _ = map(int, inside.stdout.split()[:3])
    assert first == 0 and outside >= 1 << 30
    asked = mamushka(
        "run",
        "--rm",
        "--userns",
        "private",
        "--network",
        "apart",
        "host",
        "busybox",
        "wget",
        "-qO-",
        "http://web/hello",
    )
    assert asked.stdout == b"hello\n", asked.stderr
    assert mamushka("restart", "-t", "0", "web").returncode == 0
    port = mamushka("port", "web", "80").stdout.decode().splitlines()[0].rpartition(":")[2]
    until(lambda: answers(port))


@pytest.mark.parametrize("network", ["host", "container:web"])
def test_users_of_their_own_in_other_ones_network(mamushka: Command, web: str, network: str) -> None:
    done = mamushka("run", "--rm", "--userns", "private", "--network", network, "host", "true")
    assert done.returncode == 125 and b"hint:" in done.stderr and b"belongs to other ones' root" in done.stderr
