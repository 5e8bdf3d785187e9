"""What this room is told: networks, endpoints and ports as values; it keeps nothing but what the kernel keeps.

Every engine on a host has a ``Scope``: the names of its table and default bridge and the link group by which
its own links are told from everybody else's. Two engines with different roots never touch each other's.
"""

from __future__ import annotations

from mamushka.values import value

DEFAULT_ROOT = "/var/lib/mamushka"


@value
class Scope:
    """Whose links and rules these are. ``group`` marks links (``ip link show group N``)."""

    table: str = "mamushka"
    bridge: str = "mamushka0"
    group: int = 0x6D6B0000


@value
class Network:
    """A bridge and what may pass it. Addresses are text, as a person writes them."""

    id: str
    bridge: str  # the bridge's name, at most 15 characters
    subnet: str = ""  # "172.18.0.0/16"
    gateway: str = ""
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False  # no way out of the bridge, and no default route
    masquerade: bool = True  # leave with the host's address
    metadata: bool = False  # may reach the link-local metadata addresses of a cloud
    mtu: int = 0


@value
class Endpoint:
    """One workload's place in one network."""

    id: str  # hex; the link on the host is named after it
    address: str = ""
    address6: str = ""
    mac: str = ""
    interface: str = "eth0"  # its name inside


@value
class PortMapping:
    """A port that the host answers on and passes to an endpoint. An empty host address: all of the family."""

    address: str  # the endpoint's
    port: int
    host_port: int
    protocol: str = "tcp"  # tcp | udp
    host_address: str = ""


def scope_of(root: str) -> Scope:
    """The scope of the engine whose data lives under ``root``; the default root has the plain names."""
    if root == DEFAULT_ROOT:
        return Scope()
    from binascii import crc32

    mark = crc32(root.encode())
    # The default scope's group has bit 30 set, all others have not; zero is everybody's group.
    return Scope(f"mamushka-{mark:08x}", f"mk0-{mark:08x}", mark & 0x3FFFFFFF or 1)
