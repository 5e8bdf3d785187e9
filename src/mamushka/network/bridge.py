"""Bridges: the switch of a network, with the gateway's addresses on the host's side.

A bridge is made down, configured, and brought up last: one that is up is complete, whoever died meanwhile.
"""

from __future__ import annotations

import errno

from mamushka.errors import Conflict
from mamushka.linux.rtnetlink import (
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    configure_link,
    find_link,
    link_up,
    links,
    new_address,
    new_bridge,
    routes,
)
from mamushka.network import forwarding
from mamushka.network.address import pack, parse_subnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.netlink import Netlink
    from mamushka.linux.rtnetlink import Link
    from mamushka.network.network import Network, Scope


def find(route: Netlink, scope: Scope, network: Network) -> Link | None:
    """The bridge when it is complete. Conflict where a stranger has its name."""
    found = find_link(route, network.bridge)
    if found is None:
        return None
    if found.kind != "bridge" or found.group != scope.group:
        raise Conflict(
            f"the link {network.bridge} exists and is not ours: {found.kind or 'device'}, group {found.group}",
            hint=f"remove it (ip link delete {network.bridge}) or give the network another bridge name",
        )
    return found if found.up else None


def ensure(route: Netlink, scope: Scope, network: Network) -> Link:
    """The bridge, made or completed where need be."""
    found = find(route, scope, network)
    if found is not None:
        return found
    mtu = network.mtu or uplink_mtu(route)
    try:
        route.request([new_bridge(network.bridge, mac=_mac(network), mtu=mtu, group=scope.group)])
    except FileExistsError:  # half made by somebody who was killed; what follows may be repeated
        pass
    made = find_link(route, network.bridge)
    if made is None:
        raise OSError(errno.ENODEV, f"bridge {network.bridge}: removed while it was made")
    _configure(route, made.index, network)
    return made


def uplink_mtu(route: Netlink) -> int:
    """The largest packet of the link that the default route goes by; zero, the kernel's own choice, without one.

    A network with larger ones would depend on every router between to tell, and some are silent.
    """
    outward = {entry.index for entry in routes(route) if not entry.prefix}
    return next((link.mtu for link in links(route) if link.index in outward), 0) if outward else 0


def _mac(network: Network) -> bytes:
    """Fixed, from the gateway: a bridge without one takes its ports', and inside everybody's neighbour changes."""
    return b"\x02\x42" + (pack(network.gateway or network.gateway6 or "0.0.0.1"))[-4:]


def _link_local(mac: bytes) -> bytes:
    """The address that a link with this hardware address has for its neighbours. RFC 4291, appendix A."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _configure(route: Netlink, index: int, network: Network) -> None:
    settings = ((IPV4_DEVCONF_FORWARDING, int(not network.internal)), (IPV4_DEVCONF_ROUTE_LOCALNET, 1))
    batch = [configure_link(index, ipv4=settings, link_local=False)]
    for gateway, subnet in ((network.gateway, network.subnet), (network.gateway6, network.subnet6)):
        if gateway:
            batch.append(new_address(index, pack(gateway), parse_subnet(subnet).prefix))
    if network.subnet6:
        # Neighbours are looked for from here. The kernel's own would be usable only some time after the link is up.
        batch.append(new_address(index, _link_local(_mac(network)), 64))
    route.request(batch)
    if network.subnet6:
        forwarding.admit_bridge(network.bridge)
    route.request([link_up(index)])
