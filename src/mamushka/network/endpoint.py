"""Endpoints: a veth pair from a bridge into a workload's network namespace, with its addresses and routes.

A link that was brought up takes packets once the kernel's own queue of link events has come to it, a tenth of a
millisecond later; what is sent before is dropped, and whoever sent it tries again after a second (TCP, neighbour
discovery) or five (names). So an endpoint is connected when all its links have said that they take packets.

Everything made here dies with the namespace: when its last process and descriptor are gone the kernel
removes the inner link, and the outer one with it. Nothing has to be taken down in a hurry.
"""

from __future__ import annotations

import errno
import time

from mamushka.linux.rtnetlink import (
    IF_OPER_UP,
    bridge_port_up,
    configure_link,
    find_link,
    link_up,
    new_address,
    new_default_route,
    new_veth,
    open_route,
    remove_link,
)
from mamushka.network.address import pack, parse_subnet
from mamushka.network.namespace import Entered, write_sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.netlink import Message, Netlink
    from mamushka.linux.rtnetlink import Link
    from mamushka.network.network import Endpoint, Network, Scope


# Events of links that are in no hurry are dealt with once a second. Linux, net/core/link_watch.c.
_PATIENCE = 1.5


def outer_name(endpoint: Endpoint) -> str:
    """The link on the host: mkv and twelve digits of the endpoint's id fill the kernel's fifteen."""
    return f"mkv{endpoint.id[:12]}"


def connect(
    route: Netlink,
    scope: Scope,
    network: Network,
    bridge: Link,
    endpoint: Endpoint,
    namespace: int,
    *,
    default_route: bool = True,
) -> None:
    """Plug the namespace into the bridge; ``default_route`` for the first network only."""
    mac = bytes.fromhex(endpoint.mac.replace(":", ""))
    outer = outer_name(endpoint)
    pair = new_veth(
        outer,
        endpoint.interface,
        peer_namespace=namespace,
        peer_mac=mac,
        master=bridge.index,
        mtu=bridge.mtu,
        group=scope.group,
    )
    # Hairpin: where br_netfilter is on, a workload that calls its own published port is bridged back to itself.
    route.request([pair, configure_link(outer, link_local=False), bridge_port_up(outer)])
    with Entered(namespace):
        inside = open_route()
        _set_ipv6(endpoint.interface, bool(endpoint.address6))
    with inside:
        link = find_link(inside, endpoint.interface)
        if link is None:
            raise OSError(errno.ENODEV, f"link {endpoint.interface}: renamed or removed while it was configured")
        inside.request(_inner(link.index, network, endpoint, default_route and not network.internal))
        _await(inside, endpoint.interface)
    for name in (outer, network.bridge):
        _await(route, name)


def _await(route: Netlink, name: str) -> None:
    """Until the link takes packets; or not any longer, where whoever else has changed it."""
    deadline = time.monotonic() + _PATIENCE
    while (link := find_link(route, name)) is not None and link.operstate != IF_OPER_UP:
        if time.monotonic() > deadline:
            return
        time.sleep(0.0001)


def _set_ipv6(interface: str, enabled: bool) -> None:
    """None; or at once, without a second or two of asking whether somebody else has the link-local address."""
    switch, position = ("accept_dad", "0") if enabled else ("disable_ipv6", "1")
    try:
        write_sysctl(f"net/ipv6/conf/{interface}/{switch}", position)
    except FileNotFoundError:  # a kernel without IPv6
        pass


def _inner(index: int, network: Network, endpoint: Endpoint, default_route: bool) -> list[Message]:
    batch = [link_up(index)]
    for address, subnet, gateway in (
        (endpoint.address, network.subnet, network.gateway),
        (endpoint.address6, network.subnet6, network.gateway6),
    ):
        if address:
            batch.append(new_address(index, pack(address), parse_subnet(subnet).prefix))
            if default_route and gateway:
                batch.append(new_default_route(index, pack(gateway)))
    return batch


def disconnect(route: Netlink, endpoint: Endpoint) -> None:
    """Unplug a workload that goes on living; harmless when the link is gone."""
    link = find_link(route, outer_name(endpoint))
    if link is not None:
        remove_link(route, link.index)
