"""A small world: a host, somebody outside it, and workloads; each is a network namespace without a process.

A socket belongs to the namespace in which it was opened, so one test holds both ends of a connection.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from mamushka.linux.nftables import Nftables
from mamushka.linux.rtnetlink import links, new_veth, open_route
from mamushka.network import endpoint, ipam, portmap, reconcile
from mamushka.network.address import parse_subnet
from mamushka.network.namespace import Entered, new_namespace, write_sysctl
from mamushka.network.network import Endpoint, Network, PortMapping, Scope
from tests import peers

HOST, OUTSIDE = "203.0.113.1", "203.0.113.2"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
SECOND = "203.0.113.7"  # a second address of the host
TIMEOUT = 2.0
SILENCE = 0.3  # how long we listen for what must not come


class Place:
    """One network namespace."""

    def __init__(self, sysctls: dict[str, str] | None = None) -> None:
        self.fd = new_namespace(sysctls or {})

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def run(self, *command: str) -> str:
        """A program inside; its standard output."""
        with Entered(self.fd):
            done = subprocess.run([peers.find(command[0]) or command[0], *command[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def open(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with Entered(self.fd):
            return socket.socket(family, kind)

    def listen(self, address: str, port: int = 0, kind: int = socket.SOCK_STREAM) -> socket.socket:
        listener = self.open(address, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.settimeout(TIMEOUT)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener

    def reaches(self, listener: socket.socket, address: str, port: int, *, timeout: float = TIMEOUT) -> str:
        """Connect and exchange a word; the address that the listener sees, or "" when it does not work."""
        with self.open(address) as client:
            client.settimeout(timeout)
            try:
                client.connect((address, port))
                listener.settimeout(timeout)
                server, peer = listener.accept()
            except OSError:
                return ""
            with server:
                server.settimeout(timeout)
                client.sendall(b"ping")
                assert server.recv(8) == b"ping"
                server.sendall(b"pong")
                assert client.recv(8) == b"pong"
            return str(peer[0])


class Host(Place):
    """The host: an engine's links and rules on one side, the outside on the other."""

    def __init__(self, outside: Place, scope: Scope) -> None:
        super().__init__()
        self.scope = scope
        self.outside = outside
        self.workloads: list[Place] = []
        self.endpoints: list[Endpoint] = []
        self.networks: dict[str, Network] = {}
        self.held: list[int] = []
        with Entered(self.fd):
            write_sysctl("net.ipv4.ip_forward", "0")  # a new namespace has it from the first one
            self.route, self.filter = open_route(), Nftables()
        self._wire()
        self.before = self.state()

    def _wire(self) -> None:
        """Whole before any test begins: what a test waits for is the product's and not this cable's."""
        self.wire("wan", self.outside)
        for place in (self, self.outside):
            place.run("ip", "link", "set", "wan", "up")
        for place in (self, self.outside):
            while "state UP" not in place.run("ip", "link", "show", "wan"):
                time.sleep(0.001)
        for place, addresses in (
            (self, (f"{HOST}/24", f"{SECOND}/24", f"{HOST6}/64")),
            (self.outside, (f"{OUTSIDE}/24", f"{OUTSIDE6}/64")),
        ):
            for address in addresses:
                place.run("ip", "address", "add", address, "dev", "wan", *(["nodad"] if ":" in address else []))
        for place, address in ((self, HOST6), (self.outside, OUTSIDE6)):
            # Neighbours ask for it by a group that the kernel joins in its own time.
            while f"01ff00000{address[-1]}" not in place.run("cat", "/proc/net/igmp6"):
                time.sleep(0.001)
        self.run("ip", "route", "add", "default", "via", OUTSIDE)

    def wire(self, name: str, other: Place) -> None:
        """A cable to somewhere else, still down."""
        self.route.request([new_veth(name, name, peer_namespace=other.fd)])

    def state(self) -> tuple[list[str], str, str]:
        """Links, rules and forwarding: what must be as before when the last workload has gone."""
        names = sorted(link.name for link in links(self.route))
        forwarding = self.run("cat", "/proc/sys/net/ipv4/conf/wan/forwarding", "/proc/sys/net/ipv4/ip_forward")
        return names, self.run("nft", "list", "ruleset"), forwarding

    def network(self, name: str = "default", second: int = 30, **properties: object) -> Network:
        fields: dict[str, object] = {
            "id": name.encode().hex(),
            "bridge": f"mk-{name}",
            "subnet": f"172.{second}.0.0/16",
            "gateway": f"172.{second}.0.1",
        }
        self.networks.setdefault(name, Network(**{**fields, **properties}))  # type: ignore[arg-type]
        return self.networks[name]

    def plug(self, network: Network) -> tuple[Place, Endpoint]:
        """A new workload in a network."""
        workload = Place({"net.ipv4.ip_unprivileged_port_start": "0"})
        self.workloads.append(workload)
        number = len(self.endpoints) + 2
        base = parse_subnet(network.subnet)
        address = ipam.allocate(base, (), after=base.base + number)
        address6 = network.subnet6.partition("/")[0] + f"{number:x}" if network.subnet6 else ""
        entry = Endpoint(f"{number:012x}" + os.urandom(4).hex(), address, address6, ipam.mac_of(address))
        with Entered(self.fd):
            bridge, _ = reconcile.establish(self.route, self.filter, self.scope, network)
            endpoint.connect(self.route, self.scope, network, bridge, entry, workload.fd)
        self.endpoints.append(entry)
        return workload, entry

    def publish(self, mapping: PortMapping) -> PortMapping:
        with Entered(self.fd):
            mapping, held = portmap.reserve(mapping)
        self.held.append(held)
        portmap.publish(self.filter, self.scope, [mapping])
        return mapping

    def reconcile(self, *mappings: PortMapping, networks: bool = True) -> None:
        with Entered(self.fd):
            living = list(self.networks.values()) if networks else []
            endpoints = self.endpoints if networks else []
            reconcile.reconcile(self.route, self.filter, self.scope, living, endpoints, mappings)

    def sweep(self) -> None:
        with Entered(self.fd):
            reconcile.sweep(self.route, self.filter, self.scope)

    def close(self) -> None:
        for workload in self.workloads:
            workload.close()
        for held in self.held:
            os.close(held)
        self.route.close()
        self.filter.close()
        super().close()


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with an outside, where nothing of ours exists yet."""
    peers.need_root()
    outside = Place()
    host = Host(outside, Scope("mamushka-test", "mk-default", 4242))
    yield host
    host.close()
    outside.close()
