"""Network devices of the host's that move into the container. runtime-spec, config-linux.md#network-devices.

A device that moves loses its addresses and goes down. Behind it the permanent addresses of global scope are put back,
and it is always up inside; routes are not put back, since they need not make sense there. When the network namespace
ends, the kernel sends a physical device home and removes a virtual one. Until the program runs, a failure brings back
all that has moved.
"""

from __future__ import annotations

import os
from errno import EEXIST

from mamushka.errors import Conflict, Denied, Invalid, MamushkaError, NotFound
from mamushka.linux.process import CLONE_NEWNET, setns
from mamushka.linux.rtnetlink import (
    Address,
    addresses,
    find_link,
    link_up,
    links,
    move_link,
    new_address,
    open_route,
)
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.linux.netlink import Netlink
    from mamushka.linux.rtnetlink import Link
    from mamushka.spec.runtime import NetDevice

_NAME_MAX = 15  # IFNAMSIZ without the zero byte


@value
class Move:
    """One device: what it is on the host, and its name inside, where %d becomes a number."""

    link: Link
    name: str
    addresses: tuple[Address, ...]


class Passage:
    """The devices of one container, on their way."""

    __slots__ = ("_host", "_inside", "_moved", "_moves", "_target")

    def __init__(self, asked: Mapping[str, NetDevice], *, private: bool) -> None:
        """Look at all of them. Invalid or NotFound before any moves; ``private``: the network namespace is its own."""
        if not private:
            raise Invalid("linux.netDevices needs a network namespace", hint='add {"type": "network"} to namespaces')
        names = [_checked(device.name or name) for name, device in asked.items()]
        if len({*names} - {name for name in names if "%" in name}) < sum("%" not in name for name in names):
            raise Invalid("two of linux.netDevices would have the same name inside")
        self._host = self._inside = self._target = -1
        self._moved: list[tuple[Move, int]] = []
        with open_route() as route:
            self._moves = [_look(route, outside, name) for outside, name in zip(asked, names, strict=True)]

    def describe(self) -> str:
        """As a person would type it."""
        return "; ".join(f"ip link set {move.link.name} netns … name {move.name}" for move in self._moves)

    def move(self, namespace: int) -> None:
        """Move them all into the network namespace, a descriptor; Conflict or Denied, and nothing has moved."""
        self._target = os.dup(namespace)
        self._host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with _route_in(self._target, self._host) as inside, open_route() as outside:
            for move in self._moves:
                before = {link.index: link.name for link in links(inside)}
                if move.name in before.values():
                    raise Conflict(f"cannot move {move.link.name} inside: there is a device {move.name} already")
                try:
                    outside.request([move_link(move.link.index, self._target, move.name)])
                finally:
                    # It may have moved without having got its name.
                    arrived = [link for link in links(inside) if link.index not in before]
                    self._moved += [(move, link.index) for link in arrived[:1]]
                _furnish(inside, self._moved[-1][1], move)

    def back(self) -> None:
        """Bring back what has moved, with its addresses, and up if it was; the namespace lives that long."""
        if self._moved:
            with _route_in(self._target, self._host) as inside, open_route() as outside:
                for move, index in reversed(self._moved):
                    inside.request([move_link(index, self._host, move.link.name)])
                    found = find_link(outside, move.link.name)
                    if found is not None:
                        _furnish(outside, found.index, move, up=move.link.up)
            self._moved = []
        self.settle()

    def settle(self) -> None:
        """They stay."""
        for descriptor in (self._target, self._host):
            if descriptor >= 0:
                os.close(descriptor)
        self._target = self._host = -1


def explained(error: OSError, asked: Mapping[str, NetDevice]) -> MamushkaError:
    """Why the kernel did not let them go."""
    names = ", ".join(asked)
    if error.errno == EEXIST:
        return Conflict(f"cannot move {names} into the container: {error.strerror}")
    return Denied(
        f"cannot move {names} into the container: {error.strerror}",
        hint="CAP_NET_ADMIN over both network namespaces is needed; lo and some tunnels never move",
    )


def _checked(name: str) -> str:
    if not name or len(name.encode()) > _NAME_MAX or name in (".", "..") or {"/", ":"} & {*name}:
        raise Invalid(f"{name!r} is not a network device's name", hint="at most 15 bytes, no / and no :")
    if name.count("%") > 1 or ("%" in name and "%d" not in name) or any(letter.isspace() for letter in name):
        raise Invalid(f"{name!r} is not a network device's name", hint="of % only one %d is understood")
    return name


def _look(route: Netlink, outside: str, name: str) -> Move:
    link = find_link(route, _checked(outside))
    if link is None:
        raise NotFound(f"there is no network device {outside} to move into the container", hint="ip link lists them")
    given = tuple(entry for entry in addresses(route) if entry.index == link.index and entry.kept)
    return Move(link, name, given)


def _furnish(route: Netlink, index: int, move: Move, *, up: bool = True) -> None:
    """Its addresses, and whether it is up."""
    messages = [
        new_address(index, entry.address, entry.prefix, peer=entry.peer, broadcast=entry.broadcast)
        for entry in move.addresses
    ]
    route.request([*messages, *([link_up(index)] if up else [])])


def _route_in(namespace: int, home: int) -> Netlink:
    """A socket of another network namespace, which keeps it wherever the thread is afterwards."""
    setns(namespace, CLONE_NEWNET)
    try:
        return open_route()
    finally:
        setns(home, CLONE_NEWNET)
