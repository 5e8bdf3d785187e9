"""Making the kernel's state what it should be: whatever a killed process left goes, whatever is missing comes back.

``sweep`` needs nobody's memory: a bridge without ports serves nobody. ``reconcile`` is told what lives and
brings back, too, what somebody else removed (``nft flush ruleset`` is how most firewalls are reloaded).
Both change nothing when nothing is wrong, and must not run beside a ``connect``: the caller holds a lock.
"""

from __future__ import annotations

from mamushka.linux.nftables import Element, Nftables, add_elements, delete_elements
from mamushka.linux.rtnetlink import links, remove_link
from mamushka.network import bridge, endpoint, firewall, forwarding, portmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mamushka.linux.netlink import Message, Netlink
    from mamushka.linux.rtnetlink import Link
    from mamushka.network.network import Endpoint, Network, PortMapping, Scope


def establish(route: Netlink, filter: Nftables, scope: Scope, network: Network) -> tuple[Link, bool]:
    """Everything a network needs before somebody joins: the bridge, and whether the table was new.

    Two questions when all is there. Where the table was new and other networks live, ``reconcile`` brings
    theirs back. The bridge comes up last: one that is up has its rules.
    """
    if firewall.present(filter, scope):
        found = bridge.find(route, scope, network)
        if found is not None:
            forwarding.ensure(route, filter, scope, ipv6=bool(network.subnet6))
            return found, False
    made = firewall.ensure(filter, scope)
    filter.commit(firewall.admit(scope, network))
    forwarding.ensure(route, filter, scope, ipv6=bool(network.subnet6))
    return bridge.ensure(route, scope, network), made


def sweep(route: Netlink, filter: Nftables, scope: Scope) -> None:
    """Remove bridges that have no ports; with the last of them the table, and forwarding as we found it."""
    ours = _ours(route, scope)
    used = {link.master for link in ours if link.kind != "bridge"}
    _clear(route, filter, scope, ours, lambda link: link.kind == "bridge" and link.index not in used)


def reconcile(
    route: Netlink,
    filter: Nftables,
    scope: Scope,
    networks: Sequence[Network],
    endpoints: Sequence[Endpoint],
    mappings: Sequence[PortMapping],
) -> None:
    """Keep exactly these: networks that have users, their endpoints and their published ports."""
    ours = _ours(route, scope)
    living = {network.bridge for network in networks} | {endpoint.outer_name(entry) for entry in endpoints}
    _clear(route, filter, scope, ours, lambda link: link.name not in living)
    if not networks:
        return
    if firewall.ensure(filter, scope):
        filter.commit([message for network in networks for message in firewall.admit(scope, network)])
        forwarding.ensure(route, filter, scope, ipv6=any(network.subnet6 for network in networks))
    _reconcile_ports(filter, scope, mappings)


def _ours(route: Netlink, scope: Scope) -> list[Link]:
    return [link for link in links(route) if link.group == scope.group]


def _clear(route: Netlink, filter: Nftables, scope: Scope, ours: list[Link], is_stale: Callable[[Link], bool]) -> None:
    stale = [link for link in ours if is_stale(link)]
    for link in stale:
        remove_link(route, link.index)
        if link.kind == "bridge":
            firewall.dismiss(filter, scope, link.name)
    remaining = any(link.kind == "bridge" for link in ours if link not in stale)
    if not remaining and firewall.present(filter, scope):
        forwarding.restore(filter, scope)
        firewall.remove(filter, scope)


def _reconcile_ports(filter: Nftables, scope: Scope, mappings: Sequence[PortMapping]) -> None:
    batch: list[Message] = []
    for name, wanted in portmap.places(mappings).items():
        present = {element.key: element.data for element in filter.elements(scope.table, name)}
        wrong = [Element(key) for key, target in present.items() if wanted.get(key) != target]
        missing = [Element(key, target) for key, target in wanted.items() if present.get(key) != target]
        if wrong:
            batch.append(delete_elements(scope.table, name, wrong))
        if missing:
            batch.append(add_elements(scope.table, name, missing))
    filter.commit(batch)
