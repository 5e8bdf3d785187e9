"""Bridges: the switch of a network, with the gateway's addresses on the host's side.

A bridge is made down, configured, and brought up last: one that is up is complete, whoever died meanwhile.
"""

from __future__ import annotations

import errno

from mamushka.errors import Conflict
from mamushka.linux.rtnetlink import (
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    Link,
    configure_link,
    delete_link,
    find_link,
    link_up,
    new_address,
    new_bridge,
)
from mamushka.network.address import pack, parse_subnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.netlink import Netlink
    from mamushka.network.network import Network, Scope


def ensure(route: Netlink, scope: Scope, network: Network) -> tuple[int, bool]:
    """The bridge's link index, and whether it had to be made. Conflict where a stranger has its name."""
    found = find_link(route, network.bridge)
    if found is not None and _complete(found, scope, network):
        return found.index, False
    if found is None:
        try:
            route.request([new_bridge(network.bridge, mac=_mac(network), mtu=network.mtu, group=scope.group)])
        except FileExistsError:  # somebody made it at the same moment; what follows may be repeated
            pass
        found = find_link(route, network.bridge)
        if found is None:
            raise OSError(errno.ENODEV, f"bridge {network.bridge}: removed while it was made")
    _configure(route, found.index, network)
    return found.index, True


def _complete(found: Link, scope: Scope, network: Network) -> bool:
    if found.kind != "bridge" or found.group != scope.group:
        raise Conflict(
            f"the link {network.bridge} exists and is not ours: {found.kind or 'device'}, group {found.group}",
            hint=f"remove it (ip link delete {network.bridge}) or give the network another bridge name",
        )
    return found.up


def _mac(network: Network) -> bytes:
    """Fixed, from the gateway: a bridge without one takes its ports', and inside everybody's neighbour changes."""
    return b"\x02\x42" + (pack(network.gateway or network.gateway6 or "0.0.0.1"))[-4:]


def _configure(route: Netlink, index: int, network: Network) -> None:
    settings = ((IPV4_DEVCONF_FORWARDING, int(not network.internal)), (IPV4_DEVCONF_ROUTE_LOCALNET, 1))
    batch = [configure_link(index, ipv4=settings, link_local=bool(network.subnet6))]
    for gateway, subnet in ((network.gateway, network.subnet), (network.gateway6, network.subnet6)):
        if gateway:
            batch.append(new_address(index, pack(gateway), parse_subnet(subnet).prefix))
    route.request([*batch, link_up(index)])


def remove(route: Netlink, index: int) -> None:
    """Take a bridge away; harmless when it is gone."""
    try:
        route.request([delete_link(index)])
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
