"""What a shim holds of its workload's networks, and how it takes that down without the database.

The ports go first, while their reservations are held, so nobody is ever sent to a workload that has ended and no
port is free before it is silent. Links and, behind the last workload, bridges and table cost the kernel
grace periods of tens of milliseconds: that comes last, when everybody has been told of the end.
"""

from __future__ import annotations

import os

from mamushka.network.network import PortMapping, scope_of
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.network.responder import Responder

# Long enough for the next workload of a series to find the bridge still there.
GRACE = 0.5


@value
class Wires:
    """One workload's. The descriptors belong to the shim."""

    root: str  # the engine's data root, which tells whose links they are
    lock: str
    mark: str  # a file that stands as long as the ports do
    links: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    reservations: tuple[int, ...] = ()  # descriptors that keep the ports ours
    filter: int = -1  # an nftables socket: its last close may be slow, and in the shim nobody waits for it
    resolver: tuple[int, ...] = ()  # descriptors of its responder's sockets, where a network has names
    index: str = ""  # the file that says where the names are
    servers: tuple[str, ...] = ()  # which other names are asked

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that must stay open while the workload runs."""
        return (*self.reservations, self.filter, *self.resolver)


def responder(wires: Wires) -> Responder | None:
    """Who answers for names inside; None where no network has any."""
    if not wires.resolver:
        return None
    from mamushka.network.responder import Responder

    datagrams, streams = wires.resolver
    return Responder(datagrams, streams, wires.index, wires.servers)


def silence(wires: Wires) -> None:
    """The workload has ended: the host no longer answers on its ports, and they are free. Not to be repeated."""
    if not wires.ports:
        return
    from mamushka.linux.nftables import Nftables
    from mamushka.network import portmap

    filter = Nftables(wires.filter)
    try:
        portmap.unpublish(filter, scope_of(wires.root), wires.ports)
        os.unlink(wires.mark)
    except FileNotFoundError:  # somebody took this shim for dead, and withdrew
        pass
    finally:
        filter.detach()
        for held in wires.reservations:
            os.close(held)


def tidy(wires: Wires, namespace: int = -1) -> None:
    """Take the links down and, when nobody else is there, bridges and table. Slow: nobody should wait.

    Also the links into ``namespace`` that were plugged in while the workload ran: that ends some time later, and until
    then a bridge has a port, and is somebody's.
    """
    from mamushka.linux.flock import Lock
    from mamushka.linux.nftables import Nftables
    from mamushka.linux.rtnetlink import find_link, open_route, remove_link
    from mamushka.network import reconcile

    with open_route() as route, Nftables(wires.filter) as filter:
        for name in wires.links:
            link = find_link(route, name)
            if link is not None:
                remove_link(route, link.index)
        _take_down_later_ones(namespace)
        try:
            lock = Lock(wires.lock)
        except FileNotFoundError:  # the engine's directories were removed: nobody else comes
            reconcile.sweep(route, filter, scope_of(wires.root))
            return
        with lock:
            reconcile.sweep(route, filter, scope_of(wires.root))


def _take_down_later_ones(namespace: int) -> None:
    from mamushka.linux.rtnetlink import links, open_route, remove_link
    from mamushka.network.namespace import Entered

    if namespace < 0:
        return
    with Entered(namespace):
        route = open_route()
    with route:
        for link in links(route):
            if link.kind == "veth":
                remove_link(route, link.index)
