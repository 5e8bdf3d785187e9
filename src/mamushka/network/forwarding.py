"""Forwarding, for as long as there are networks and on no more links than needed.

What comes in by a link is forwarded where that link says so (net.ipv4.conf.LINK.forwarding); the global
ip_forward only writes the same into all of them. So bridges forward, and the links with addresses, by which
answers and callers of published ports arrive. Those on which *we* turned it on are members of the set
``uplinks``: the filter drops what would pass between two of them, so the host becomes no router, and with
the last network they are turned off again. When several engines share a host, the last one does it.

IPv6 asks the global switch too (ip6_forward), unless the kernel has force_forwarding (Linux 6.17).
"""

from __future__ import annotations

from mamushka.linux.nftables import Element, add_elements
from mamushka.linux.rtnetlink import AF_INET, AF_INET6, IFF_LOOPBACK, addresses, links
from mamushka.network import firewall
from mamushka.network.namespace import read_sysctl, write_sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.linux.netlink import Netlink
    from mamushka.linux.nftables import Nftables, Set
    from mamushka.network.network import Scope

_LINK_LOCAL6 = bytes([0xFE, 0x80])
_ALL = "all"


def ensure(route: Netlink, filter: Nftables, scope: Scope, *, ipv6: bool = False) -> None:
    """Turn forwarding on where it is off and needed. One read of a file when the host forwards anyway."""
    if not _is_on("net/ipv4/ip_forward"):
        wanted = [link for link in _uplinks(route, scope, AF_INET) if not _is_on(f"net/ipv4/conf/{link}/forwarding")]
        _remember(filter, scope, firewall.UPLINKS, wanted)
        for link in wanted:
            _turn(f"net/ipv4/conf/{link}/forwarding", "1")
    if ipv6 and not _is_on(f"net/ipv6/conf/{_ALL}/forwarding"):
        _ensure_ipv6(route, filter, scope)


def _ensure_ipv6(route: Netlink, filter: Nftables, scope: Scope) -> None:
    outward = _uplinks(route, scope, AF_INET6)
    if _exists(f"net/ipv6/conf/{_ALL}/force_forwarding"):
        wanted = [link for link in outward if not _is_on(f"net/ipv6/conf/{link}/force_forwarding")]
        _remember(filter, scope, firewall.UPLINKS6, wanted)
        for link in wanted:
            _turn(f"net/ipv6/conf/{link}/force_forwarding", "1")
        return
    _remember(filter, scope, firewall.UPLINKS6, [*outward, _ALL])
    for link in outward:  # a router ignores advertisements, which may be all that this host's own route comes from
        if read_sysctl(f"net/ipv6/conf/{link}/accept_ra") == "1":
            _turn(f"net/ipv6/conf/{link}/accept_ra", "2")
    _turn(f"net/ipv6/conf/{_ALL}/forwarding", "1")


def admit_bridge(bridge: str) -> None:
    """Let a bridge forward IPv6; for IPv4 that is a property it is made with."""
    if _exists(f"net/ipv6/conf/{bridge}/force_forwarding"):
        _turn(f"net/ipv6/conf/{bridge}/force_forwarding", "1")


def restore(filter: Nftables, scope: Scope) -> None:
    """Turn off again what we turned on; or leave that to another engine that has networks here."""
    heir = next((name for name, comment in filter.tables() if comment == firewall.LAYOUT and name != scope.table), "")
    for owner, family, switch in (
        (firewall.UPLINKS, "ipv4", "forwarding"),
        (firewall.UPLINKS6, "ipv6", "force_forwarding"),
    ):
        remembered = filter.elements(scope.table, owner.name)
        if heir and remembered:
            filter.commit([add_elements(heir, owner.name, remembered)])
            continue
        for element in remembered:
            link = element.key.rstrip(b"\0").decode()
            _turn(f"net/{family}/conf/{link}/{'forwarding' if link == _ALL else switch}", "0")


def _uplinks(route: Netlink, scope: Scope, family: int) -> list[str]:
    """Links with an address that others can reach, except our own and the loopback."""
    reachable = {entry.index for entry in addresses(route, family) if entry.address[:2] != _LINK_LOCAL6}
    found = (link for link in links(route) if link.index in reachable)
    return [link.name for link in found if link.group != scope.group and not link.flags & IFF_LOOPBACK]


def _remember(filter: Nftables, scope: Scope, owner: Set, names: Sequence[str]) -> None:
    """Before the switch is turned, so that nobody can die between the two and leave it on for ever."""
    if names:
        members = [Element(firewall.interface_key(name)) for name in names]
        filter.commit([add_elements(scope.table, owner.name, members)])


def _exists(switch: str) -> bool:
    try:
        read_sysctl(switch)
    except FileNotFoundError:
        return False
    return True


def _is_on(switch: str) -> bool:
    try:
        return read_sysctl(switch) != "0"
    except FileNotFoundError:  # the link has gone, or the kernel lacks the protocol: nothing to turn
        return True


def _turn(switch: str, position: str) -> None:
    try:
        write_sysctl(switch, position)
    except FileNotFoundError:  # the link has gone
        pass
