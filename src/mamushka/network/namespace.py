"""Network namespaces without a process and without a mount: one lives as long as a descriptor of it is open.

unshare(2) and setns(2) change the calling thread alone, so a namespace is made, configured and left again
in one thread's few instructions; other threads never notice.
"""

from __future__ import annotations

import os

from mamushka.linux.process import CLONE_NEWNET, CLONE_NEWUSER, initial, setns, unshare
from mamushka.linux.rtnetlink import link_up, open_route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SELF = "/proc/thread-self/ns/net"
_LOOPBACK_INDEX = 1  # LOOPBACK_IFINDEX: the first link of every namespace

# As Docker does: inside, nobody needs a capability for port 80 or to ping.
_PING = "net.ipv4.ping_group_range"
DEFAULT_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    _PING: "0 2147483647",
}


class Entered:
    """This thread inside a network namespace; a context manager that leads back out, if that is not where it was."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        self._home = -1

    def __enter__(self) -> None:
        home = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.path.sameopenfile(home, self._namespace):
                os.close(home)
                return
            setns(self._namespace, CLONE_NEWNET)
        except BaseException:
            os.close(home)
            raise
        self._home = home

    def __exit__(self, *exc: object) -> None:
        home, self._home = self._home, -1
        if home < 0:
            return
        try:
            setns(home, CLONE_NEWNET)
        finally:
            os.close(home)


def move(namespace: int) -> None:
    """This thread into a network namespace for good: nobody in a user namespace is let back into the host's."""
    setns(namespace, CLONE_NEWNET)


def new_namespace(
    sysctls: Mapping[str, str] = DEFAULT_SYSCTLS, *, users: int = -1, refused: Sequence[tuple[bytes, int]] = ()
) -> int:
    """A descriptor (close-on-exec) of a new namespace with its loopback up. About half a millisecond.

    ``users`` is the user namespace whose root is to own it. Where the caller is in one himself, nobody inside can send
    to the ``refused`` destinations, (address, prefix) each, unless he may change routes or send raw packets.
    """
    if users >= 0:
        return _owned(sysctls, users)
    if not initial():
        return _inside(sysctls, refused)
    home = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            _equip(sysctls)
            return os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def _owned(sysctls: Mapping[str, str], users: int) -> int:
    from mamushka.linux.nobody import made

    def make() -> None:
        setns(users, CLONE_NEWUSER)
        unshare(CLONE_NEWNET)

    namespace = made("net", make)
    try:
        with Entered(namespace):
            _equip(sysctls)
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _inside(sysctls: Mapping[str, str], refused: Sequence[tuple[bytes, int]]) -> int:
    """In a user namespace, by a child: nobody there is let back into the host's network once he has left it."""
    from mamushka.linux.nobody import made
    from mamushka.linux.rtnetlink import new_prohibition
    from mamushka.linux.users import ranges

    given = dict(sysctls)
    if given.get(_PING) == DEFAULT_SYSCTLS[_PING]:  # to all groups: those that there are
        given[_PING] = f"0 {max(first + size - 1 for first, _, size in ranges('gid'))}"

    with open_route():
        pass  # whatever that imports: a child of a process with threads must import nothing

    def make() -> None:
        unshare(CLONE_NEWNET)
        _equip(given)
        if refused:
            with open_route() as route:
                route.request([new_prohibition(address, prefix) for address, prefix in refused])

    return made("net", make)


def _equip(sysctls: Mapping[str, str]) -> None:
    with open_route() as route:
        route.request([link_up(_LOOPBACK_INDEX)])
    for name, content in sysctls.items():
        write_sysctl(name, content)


def sysctl_path(name: str) -> str:
    """The file of a sysctl; a name with slashes may hold dots, as in ``net/ipv4/conf/eth0.1/forwarding``."""
    return "/proc/sys/" + (name if "/" in name else name.replace(".", "/"))


def read_sysctl(name: str) -> str:
    """A sysctl of the thread's network namespace."""
    fd = os.open(sysctl_path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


def write_sysctl(name: str, content: str) -> None:
    """Set a sysctl of the thread's network namespace."""
    fd = os.open(sysctl_path(name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)
