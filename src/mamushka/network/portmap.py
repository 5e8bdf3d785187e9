"""Published ports: a reservation that the kernel keeps, and an element in a map that sends packets on.

A reservation is a socket bound to the port and never read. It makes the port ours against every other
program and every other workload, without a lock or a register of ours, and it ends with the process that holds
it, however that ends. Whoever holds it may therefore replace what stands in the map for the port: the
former owner is gone.
"""

from __future__ import annotations

import _socket
import errno

from mamushka.errors import Conflict, Denied, Invalid
from mamushka.linux.nftables import Element, Set, add_elements, delete_elements
from mamushka.network import firewall
from mamushka.network.address import pack
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.linux.nftables import Nftables
    from mamushka.network.network import PortMapping, Scope

_KINDS = {"tcp": (_socket.SOCK_STREAM, _socket.IPPROTO_TCP), "udp": (_socket.SOCK_DGRAM, _socket.IPPROTO_UDP)}
_WILDCARDS = ("", "0.0.0.0", "::")


def reserve(mapping: PortMapping) -> tuple[PortMapping, int]:
    """The mapping with its real host port, and the descriptor (close-on-exec) that keeps the port ours.

    Host port 0 takes a free one of net.ipv4.ip_local_port_range. Conflict when the port is taken.
    """
    if mapping.protocol not in _KINDS:
        raise Invalid(f"protocol {mapping.protocol!r} cannot be published", hint="tcp and udp can")
    kind, _ = _KINDS[mapping.protocol]
    host = _host(mapping)
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    held = _socket.socket(family, kind | _socket.SOCK_CLOEXEC)
    try:
        if family == _socket.AF_INET6:
            held.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        held.bind((host, mapping.host_port))
        port: int = held.getsockname()[1]
    except OSError as error:
        held.close()
        raise _refused(mapping, host, error) from error
    return replace(mapping, host_port=port), held.detach()


def _host(mapping: PortMapping) -> str:
    """The address to bind; a wildcard takes the family of the endpoint."""
    if mapping.host_address not in _WILDCARDS:
        if (":" in mapping.host_address) != (":" in mapping.address):
            raise Invalid(f"host address {mapping.host_address} and workload address {mapping.address} do not match")
        return mapping.host_address
    return "::" if ":" in mapping.address else "0.0.0.0"


def allocated(mapping: PortMapping) -> Conflict:
    """The port is somebody else's."""
    return Conflict(
        f"Bind for {_host(mapping)}:{mapping.host_port} failed: port is already allocated",
        hint=f"see who has it with `mamushka ps` or `ss -lnp sport = :{mapping.host_port}`, or publish another port",
    )


def _refused(mapping: PortMapping, host: str, error: OSError) -> Exception:
    where = f"{host}:{mapping.host_port}/{mapping.protocol}"
    if error.errno == errno.EADDRINUSE:
        return allocated(mapping)
    if error.errno == errno.EADDRNOTAVAIL:
        return Invalid(f"cannot publish {where}: this host does not have the address", hint="`ip address` lists them")
    if error.errno == errno.EACCES:
        return Denied(f"cannot publish {where}: the port is privileged", hint="publish a port from 1024 on")
    return error


def _place(mapping: PortMapping) -> tuple[Set, Element]:
    """The map that a mapping stands in, and how."""
    six = ":" in mapping.address
    key = bytes([_KINDS[mapping.protocol][1], 0, 0, 0]) + _port(mapping.host_port)
    target = pack(mapping.address) + _port(mapping.port)
    if mapping.host_address in _WILDCARDS:
        return (firewall.PORTS6 if six else firewall.PORTS), Element(key, target)
    at = firewall.PORTS6_AT if six else firewall.PORTS_AT
    return at, Element(pack(mapping.host_address) + key, target)


def _port(port: int) -> bytes:
    return port.to_bytes(2, "big") + bytes(2)


def _self(mapping: PortMapping) -> tuple[Set, Element]:
    """What lets a workload call itself by the port."""
    address = pack(mapping.address)
    return (firewall.SELVES if len(address) == 4 else firewall.SELVES6), Element(address + address)


def places(mappings: Sequence[PortMapping]) -> dict[str, dict[bytes, bytes]]:
    """What the maps hold when exactly these ports are published: map name → key → target."""
    definitions = (*firewall.PORT_MAPS, firewall.SELVES, firewall.SELVES6)
    wanted: dict[str, dict[bytes, bytes]] = {definition.name: {} for definition in definitions}
    for mapping in mappings:
        for owner, element in (_place(mapping), _self(mapping)):
            wanted[owner.name][element.key] = element.data
    return wanted


def publish(filter: Nftables, scope: Scope, mappings: Sequence[PortMapping]) -> None:
    """Let the host answer on ports whose reservations the caller holds."""
    table = scope.table
    placed = [_place(mapping) for mapping in mappings]
    batch = [add_elements(table, owner.name, [element]) for owner, element in map(_self, mappings)]
    try:
        filter.commit(
            [*batch, *(add_elements(table, owner.name, [element], exclusive=True) for owner, element in placed)]
        )
    except FileExistsError:  # a holder that was killed left its elements
        for owner, element in placed:
            firewall.discard(filter, scope, owner, element)
        filter.commit([*batch, *(add_elements(table, owner.name, [element]) for owner, element in placed)])


def unpublish(filter: Nftables, scope: Scope, mappings: Sequence[PortMapping]) -> None:
    """Take all ports of a workload back; harmless where that is done. The caller still holds the reservations."""
    placed = {
        (owner.name, element.key): owner for mapping in mappings for owner, element in (_place(mapping), _self(mapping))
    }
    try:
        filter.commit([delete_elements(scope.table, name, [Element(key)]) for name, key in placed])
    except FileNotFoundError:
        for (_, key), owner in placed.items():
            firewall.discard(filter, scope, owner, Element(key))
    _forget_flows(filter, mappings)


def _forget_flows(filter: Nftables, mappings: Sequence[PortMapping]) -> None:
    """A UDP client that goes on sending would keep its flow, and so the old workload's address, for ever."""
    answered = {mapping.address for mapping in mappings if mapping.protocol == "udp"}
    if answered:
        from mamushka.linux.conntrack import forget_answers_of

        for address in answered:
            forget_answers_of(filter, pack(address), _socket.IPPROTO_UDP)


def withdraw(filter: Nftables, scope: Scope, mappings: Sequence[PortMapping]) -> None:
    """Take back what a killed holder left; what others have put there since stays."""
    for name, wanted in places(mappings).items():
        try:
            present = filter.elements(scope.table, name) if wanted else []
        except FileNotFoundError:  # no table: nothing stands
            return
        stale = [element for element in present if wanted.get(element.key) == element.data]
        if stale:
            filter.commit([delete_elements(scope.table, name, [Element(element.key) for element in stale])])
    _forget_flows(filter, mappings)
