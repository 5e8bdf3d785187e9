"""A network as Docker shows it."""

from __future__ import annotations

from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.networks import NetworkSummary
    from mamushka.engine.workload import Connection


_BRIDGE = "com.docker.network.bridge.name"


def row(network: NetworkSummary, *, truncate: bool = True) -> dict[str, Any]:
    """The fields that ``network ls --format`` knows."""
    return {
        "CreatedAt": units.local_time(network.created),
        "Driver": network.driver,
        "ID": network.id[:12] if truncate else network.id,
        "IPv6": str(bool(network.subnet6)).lower(),
        "Internal": str(network.internal).lower(),
        "Label": lambda key: network.labels.get(key, ""),
        "Labels": ",".join(f"{key}={word}" for key, word in network.labels.items()),
        "Name": network.name,
        "Scope": "local",
    }


def inspect(network: NetworkSummary) -> dict[str, Any]:
    """The document of ``GET /networks/{id}``."""
    pools = ((network.subnet, network.gateway), (network.subnet6, network.gateway6))
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": units.rfc3339(network.created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": bool(network.subnet),
        "EnableIPv6": bool(network.subnet6),
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [{"Subnet": subnet, "Gateway": gateway} for subnet, gateway in pools if subnet],
        },
        "Internal": network.internal,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {identifier: _member(identifier, member) for identifier, member in network.members.items()},
        "Options": {**({_BRIDGE: network.interface} if network.interface else {}), **network.options},
        "Labels": dict(network.labels),
    }


def _member(identifier: str, member: Connection) -> dict[str, Any]:
    return {
        "Name": next(iter(member.aliases), identifier[:12]),
        "EndpointID": identifier,
        "MacAddress": member.mac,
        "IPv4Address": f"{member.address}/{member.prefix}" if member.address else "",
        "IPv6Address": f"{member.address6}/{member.prefix6}" if member.address6 else "",
    }
