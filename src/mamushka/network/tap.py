"""A machine's wire into a network namespace that somebody else has set up: Docker, podman, a CNI plugin, or we.

There is an interface with addresses and routes in it, meant for a process. A machine has a card of its own instead. So
a tap is made beside the interface and both are tied together, frame by frame and in both directions; the card gets the
interface's hardware address and MTU, the guest its addresses, routes and fixed neighbours, as values (``Interface``).
To everybody outside the guest is who the interface was.

    redirect   an ingress filter on each sends what comes in by one out by the other (traffic.py). It stands in front of
               the host's own protocols: they see nothing of what arrives and so answer nothing, and the interface may
               keep its addresses, for whoever asks for them later: an inspector, or the next machine in this namespace
    bridge     where the kernel has no such filters. A bridge answers for the addresses of its namespace, so these are
               taken away meanwhile, and the interface gets another hardware address

The tap is gone when its descriptor is closed, so with the machine. What else was changed lies in the namespace and ends
with it, or is undone; and who joins a namespace in which a machine died finds its remains and puts his own in place.
"""

from __future__ import annotations

import _socket
import errno
import os

from mamushka import plan
from mamushka.errors import Conflict, NotFound, Unsupported
from mamushka.linux import traffic
from mamushka.linux.rtnetlink import (
    AF_INET,
    AF_INET6,
    IFF_LOOPBACK,
    RT_SCOPE_LINK,
    RT_TABLE_MAIN,
    RTNH_F_ONLINK,
    RTPROT_KERNEL,
    Address,
    Link,
    Neighbour,
    Route,
    addresses,
    configure_link,
    delete_address,
    find_link,
    link_up,
    links,
    neighbours,
    new_address,
    new_bridge,
    new_neighbour,
    new_route,
    open_route,
    prohibitions,
    remove_link,
    routes,
    set_link,
)
from mamushka.linux.tun import open_tap
from mamushka.network.namespace import Entered
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.netlink import Message, Netlink

REDIRECT, BRIDGE = "redirect", "bridge"

# With the interface's number: so one machine alone can be wired to it.
_TAP, _BRIDGE = "mktap", "mkbridge"
# By it our filters are known: a number that nobody chooses for his own.
_PRIORITY = 0x6D6B
_DROPS = {4: _PRIORITY - 2, 16: _PRIORITY - 1}  # by an address's length: before the other
# What a kernel without the qdisc, the filter or the action says; and what it says of filters that are not there.
_UNKNOWN = (errno.ENOENT, errno.EOPNOTSUPP)
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


@value
class Assigned:
    """One address with the prefix of its subnet."""

    address: str
    prefix: int


@value
class Path:
    """One route. Without a gateway, what it leads to is on the link itself."""

    destination: str  # an address; for the default all zeros, with the prefix 0
    prefix: int
    gateway: str = ""
    source: str = ""  # the address that is preferred for what takes it
    metric: int = 0
    on_link: bool = False  # the gateway is a neighbour though no subnet says so


@value
class Fixed:
    """A neighbour whose hardware address is not to be asked for."""

    address: str
    mac: str


@value
class Interface:
    """What a guest is to be told of its card. Paths are in an order in which they can be set, all of it text."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Assigned, ...] = ()
    paths: tuple[Path, ...] = ()
    neighbours: tuple[Fixed, ...] = ()


@value
class Joined:
    """A machine's wire. ``tap`` belongs to who takes the value; ``undo`` gives the interface back."""

    interface: Interface
    tap: int
    way: str  # redirect, or bridge
    operations: tuple[plan.Operation, ...]

    def undo(self) -> None:
        """After the tap has been closed: take everything back that lies in the namespace."""
        plan.undo([operation for operation in self.operations if not isinstance(operation, Tap)])


# What there is


def interfaces(namespace: int) -> tuple[Interface, ...]:
    """The interfaces of a network namespace that have addresses, in the order in which they were made."""
    with Entered(namespace):
        route = open_route()
    with route:
        found = links(route)
        given = addresses(route)
        ways = [*routes(route, AF_INET), *routes(route, AF_INET6)]
        known = neighbours(route)
    wanted = [link for link in found if not link.flags & IFF_LOOPBACK and link.up]
    return tuple(
        Interface(
            link.name,
            link.address.hex(":"),
            link.mtu,
            tuple(
                Assigned(_text(item.address), item.prefix) for item in given if item.index == link.index and item.kept
            ),
            tuple(_path(item) for item in _settable(ways, link.index)),
            tuple(
                Fixed(_text(item.address), item.mac.hex(":"))
                for item in known
                if item.index == link.index and item.permanent and len(item.mac) == 6
            ),
        )
        for link in sorted(wanted, key=lambda link: link.index)
        if any(item.index == link.index and item.kept for item in given)
    )


def _text(address: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)


def _settable(ways: list[Route], index: int) -> list[Route]:
    """The routes by a link that do not come with its addresses; what others need to be reached by, first."""
    found = [way for way in ways if way.index == index and way.table == RT_TABLE_MAIN and way.protocol != RTPROT_KERNEL]
    return sorted(found, key=lambda way: (bool(way.gateway), -way.prefix))


def _path(way: Route) -> Path:
    return Path(
        _text(way.destination or bytes(4 if way.family == AF_INET else 16)),
        way.prefix,
        gateway=_text(way.gateway) if way.gateway else "",
        source=_text(way.source) if way.source else "",
        metric=way.metric,
        on_link=bool(way.flags & RTNH_F_ONLINK) or (not way.gateway and way.scope == RT_SCOPE_LINK),
    )


# Operations


class _Inside:
    """An operation on one link of a network namespace, by its name. The descriptor stays its owner's."""

    def __init__(self, namespace: int, name: str) -> None:
        self._namespace, self.name = namespace, name

    def _open(self) -> Netlink:
        with Entered(self._namespace):
            return open_route()

    def _find(self, route: Netlink, name: str) -> Link:
        link = find_link(route, name)
        if link is None:
            raise NotFound(f"there is no interface {name} in the network namespace any more")
        return link


class Tap(_Inside):
    """A tap with the MTU of an interface. ``fd`` is its descriptor once it was made."""

    def __init__(self, namespace: int, name: str) -> None:
        super().__init__(namespace, name)
        self.fd, self.tap = -1, ""

    def describe(self) -> str:
        return f"create tap for {self.name}"

    def execute(self) -> None:
        with Entered(self._namespace):
            route = open_route()
            with route:
                link = self._find(route, self.name)
                try:
                    self.fd, self.tap = open_tap(f"{_TAP}{link.index}")
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    raise Conflict(f"another machine is wired to interface {self.name} already") from error
                # No link-local address: what this end said for itself, the guest would take for a neighbour's.
                quiet = configure_link(self.tap, link_local=False)
                route.request([quiet, set_link(self.tap, mtu=link.mtu), link_up(self.tap)])

    def undo(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Forbid(_Inside):
    """What the namespace's own routes prohibit does not come in by the tap: a guest's kernel has routes of its own."""

    def __init__(self, namespace: int, tap: Tap) -> None:
        super().__init__(namespace, tap.name)
        self._tap = tap

    def describe(self) -> str:
        return f"forbid the tap of {self.name} what the namespace prohibits"

    def execute(self) -> None:
        with self._open() as route:
            wanted = prohibitions(route)
            if not wanted:
                return
            index = self._find(route, self._tap.tap).index
            route.request([traffic.new_ingress(index)])
            # Filters of one priority are for one protocol.
            route.request(
                [traffic.new_drop(index, _DROPS[len(address)], address, prefix) for address, prefix in wanted]
            )

    def undo(self) -> None:
        """It goes with the tap."""


class Redirect(_Inside):
    """What comes in by the interface goes out by the tap, and the other way round."""

    def __init__(self, namespace: int, tap: Tap) -> None:
        super().__init__(namespace, tap.name)
        self._tap = tap
        self._made = False  # the place for filters is ours, not one that was there

    def describe(self) -> str:
        return f"redirect {self.name} to its tap and back"

    def execute(self) -> None:
        with self._open() as route:
            first, second = self._find(route, self.name).index, self._find(route, self._tap.tap).index
            self._made = _tolerate(route, traffic.new_ingress(first), (errno.EEXIST,))
            _tolerate(route, traffic.delete_redirect(first, _PRIORITY), _ABSENT)  # of a machine that died here
            _tolerate(route, traffic.new_ingress(second), (errno.EEXIST,))
            route.request(
                [traffic.new_redirect(first, second, _PRIORITY), traffic.new_redirect(second, first, _PRIORITY)]
            )

    def undo(self) -> None:
        with self._open() as route:
            link = find_link(route, self.name)
            if link is not None:
                _tolerate(route, traffic.delete_redirect(link.index, _PRIORITY), _ABSENT)
                if self._made:
                    _tolerate(route, traffic.delete_ingress(link.index), _ABSENT)


class Bare(_Inside):
    """The interface without its addresses, and with another hardware address."""

    def __init__(self, namespace: int, name: str) -> None:
        super().__init__(namespace, name)
        self._mac = b""
        self._addresses: list[Address] = []
        self._routes: list[Route] = []
        self._neighbours: list[Neighbour] = []

    def describe(self) -> str:
        return f"take the addresses of {self.name}"

    def execute(self) -> None:
        with self._open() as route:
            link = self._find(route, self.name)
            index, self._mac = link.index, link.address
            self._addresses = [item for item in addresses(route) if item.index == index and item.kept]
            self._routes = _settable([*routes(route, AF_INET), *routes(route, AF_INET6)], index)
            self._neighbours = [item for item in neighbours(route) if item.index == index and item.permanent]
            route.request([delete_address(index, item.address, item.prefix) for item in self._addresses])
            # 02: locally administered, for one card. RFC 7042, section 2.1
            route.request([set_link(index, mac=b"\x02" + os.urandom(5))])

    def undo(self) -> None:
        with self._open() as route:
            link = find_link(route, self.name)
            if link is None or not self._mac:
                return
            route.request([set_link(link.index, mac=self._mac)])
            for item in self._addresses:
                again = new_address(link.index, item.address, item.prefix, peer=item.peer, broadcast=item.broadcast)
                _tolerate(route, again, (errno.EEXIST,))
            for way in self._routes:
                _tolerate(route, new_route(way), (errno.EEXIST,))
            route.request([new_neighbour(item) for item in self._neighbours])


class Bridge(_Inside):
    """A bridge of the interface and the tap alone."""

    def __init__(self, namespace: int, tap: Tap) -> None:
        super().__init__(namespace, tap.name)
        self._tap = tap
        self._bridge = ""

    def describe(self) -> str:
        return f"bridge {self.name} and its tap"

    def execute(self) -> None:
        with self._open() as route:
            link = self._find(route, self.name)
            self._bridge = f"{_BRIDGE}{link.index}"
            route.request([new_bridge(self._bridge, mtu=link.mtu), configure_link(self._bridge, link_local=False)])
            index = self._find(route, self._bridge).index
            both = [set_link(name, master=index) for name in (self.name, self._tap.tap)]
            route.request([*both, link_up(self._bridge)])

    def undo(self) -> None:
        with self._open() as route:
            link = find_link(route, self._bridge) if self._bridge else None
            if link is not None:
                remove_link(route, link.index)


def _tolerate(route: Netlink, message: Message, codes: tuple[int, ...]) -> bool:
    """Ask for it; whether it was done, and not refused for one of these reasons."""
    try:
        route.request([message])
    except OSError as error:
        if error.errno not in codes:
            raise
        return False
    return True


# The whole


def steps(namespace: int, name: str, way: str) -> tuple[Tap, list[plan.Operation]]:
    """The plan for one way of tying them together, and the operation in it that makes the tap."""
    tap = Tap(namespace, name)
    if way == REDIRECT:
        return tap, [tap, Forbid(namespace, tap), Redirect(namespace, tap)]
    return tap, [Bare(namespace, name), tap, Forbid(namespace, tap), Bridge(namespace, tap)]


def join(namespace: int, name: str) -> Joined:
    """Wire a machine to the interface ``name`` of a network namespace, whose descriptor stays the caller's and open.

    NotFound where there is none with an address, Conflict where another machine that lives is wired to it.
    """
    found = next((interface for interface in interfaces(namespace) if interface.name == name), None)
    if found is None:
        raise NotFound(
            f"the network namespace has no interface {name} with an address",
            hint="a machine that was killed here on a kernel without tc filters has left it without: make a new one",
        )
    for way in (REDIRECT, BRIDGE):
        tap, operations = steps(namespace, name, way)
        try:
            plan.run(operations)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            if way == REDIRECT:
                continue
            raise Unsupported(
                f"cannot keep a machine from what its network prohibits: {error}",
                hint="sudo modprobe -a sch_ingress cls_u32 act_gact act_mirred",
            ) from error
        return Joined(found, tap.fd, way, tuple(operations))
    raise AssertionError(name)
