"""Endpoints: a veth pair from a bridge into a workload's network namespace, with its addresses and routes.

A link that was brought up takes packets once the kernel's own queue of link events has come to it, a tenth of a
millisecond later; what is sent before is dropped, and whoever sent it tries again after a second (TCP, neighbour
discovery) or five (names). An IPv6 address is found by its neighbours once the kernel has joined the group that they
ask in, which it does in its own time, too. So an endpoint is connected when its links take packets and it is found.

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
from mamushka.network.address import hardware, pack, parse_subnet
from mamushka.network.namespace import Entered, write_sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
    mac = hardware(endpoint.mac)
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
        _await(lambda: _take_packets(inside, endpoint.interface))
    _await(lambda: _take_packets(route, outer, network.bridge))
    if endpoint.address6:
        with Entered(namespace):
            _await(lambda: _is_found(endpoint.interface, endpoint.address6))
        if network.gateway6:
            _await(lambda: _is_found(network.bridge, network.gateway6))


def _await(ready: Callable[[], bool]) -> None:
    """Until it is so; or not any longer, where somebody else has changed the link."""
    deadline = time.monotonic() + _PATIENCE
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.0001)


def _take_packets(route: Netlink, *names: str) -> bool:
    found = [find_link(route, name) for name in names]
    return all(link is None or link.operstate == IF_OPER_UP for link in found)


def _is_found(interface: str, address: str) -> bool:
    """Whether the link listens to those who look for the address, in this thread's network namespace.

    They ask in its solicited-node group. RFC 4291, section 2.7.1; /proc/net/igmp6 is a line for each link and group.
    """
    group = (pack("ff02::1:ff00:0")[:13] + pack(address)[13:]).hex()
    try:
        with open("/proc/thread-self/net/igmp6", encoding="ascii") as file:
            return any(line.split()[1:3] == [interface, group] for line in file)
    except FileNotFoundError:  # a kernel without IPv6
        return True


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
