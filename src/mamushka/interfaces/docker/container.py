"""A workload as Docker shows a container: the fields of ``ps`` and the JSON of ``inspect``."""

from __future__ import annotations

import time

from mamushka.interfaces.docker import units
from mamushka.interfaces.docker.container_config import config, host_config, mounts
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from mamushka.engine.workload import Connection, Published, Workload

_COMMAND_WIDTH = 20
LIVING = ("running", "paused", "restarting")


def short(identifier: str) -> str:
    """The first twelve digits of an id, without its algorithm."""
    return identifier.removeprefix("sha256:")[:12]


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters, the last one an ellipsis where some are missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def status(workload: Workload, now: float | None = None) -> str:
    """In words, as in the STATUS column: "Up 3 minutes (Paused)", "Exited (137) 2 hours ago"."""
    now = time.time() if now is None else now
    if workload.status in ("running", "paused"):
        up = f"Up {units.human_duration(now - workload.started)}"
        return up + " (Paused)" if workload.status == "paused" else up
    code = workload.exit.status if workload.exit else 0
    if workload.status == "restarting":
        return f"Restarting ({code}) {units.ago(workload.finished, now)}"
    if workload.status in ("dead", "removing"):
        return {"dead": "Dead", "removing": "Removal In Progress"}[workload.status]
    if not workload.started:
        return "Created"
    return f"Exited ({code}) {units.ago(workload.finished, now)}"


def ports(workload: Workload) -> str:
    """As in the PORTS column: published ones with their arrow, then the merely exposed; none where nothing runs."""
    if workload.status not in LIVING:
        return ""
    shown = [_arrow(port) for port in sorted(workload.published, key=lambda port: (port.port, port.protocol))]
    taken = {f"{port.port}/{port.protocol}" for port in workload.published}
    shown += [port for port in workload.settings.expose if port not in taken]
    return ", ".join(shown)


def _arrow(port: Published) -> str:
    return f"{host_port(port)}->{port.port}/{port.protocol}"


def host_port(port: Published) -> str:
    """ADDRESS:PORT of the host's side, an IPv6 address in brackets."""
    address = port.host_address or "0.0.0.0"
    return f"{f'[{address}]' if ':' in address else address}:{port.host_port}"


def row(workload: Workload, *, truncate: bool = True, now: float | None = None, size: str = "0B") -> dict[str, Any]:
    """The fields that ``ps --format`` knows."""
    command = " ".join(workload.command)
    labels = workload.settings.labels
    attached = [_mount_name(entry) for entry in mounts(workload)]
    return {
        "Command": '"' + (shortened(command, _COMMAND_WIDTH) if truncate else command) + '"',
        "CreatedAt": units.local_time(workload.created),
        "ID": workload.id[:12] if truncate else workload.id,
        "Image": workload.image_name,
        "Label": lambda key: labels.get(key, ""),
        "Labels": ",".join(f"{key}={word}" for key, word in labels.items()),
        "LocalVolumes": str(len(workload.volumes)),
        "Mounts": ",".join(shortened(name, 15) if truncate else name for name in attached),
        "Names": workload.name,
        "Networks": ",".join(networks_of(workload)),
        "Ports": ports(workload),
        "RunningFor": units.ago(workload.created, now),
        "Runtime": workload.runtime,
        "Size": size,
        "State": workload.status,
        "Status": status(workload, now),
    }


def _mount_name(mount: dict[str, Any]) -> str:
    return str(mount.get("Name") or mount["Source"])


def networks_of(workload: Workload) -> list[str]:
    """Names of its networks: those it is in, or those it will join."""
    if workload.connections:
        return [connection.network for connection in workload.connections]
    return [attachment.network for attachment in workload.settings.networks]


def inspect(workload: Workload, places: Mapping[str, str] = EMPTY) -> dict[str, Any]:
    """The document of ``GET /containers/{id}/json``; ``places`` are the paths of its volumes by name."""
    return {
        "Id": workload.id,
        "Created": units.rfc3339(workload.created),
        "Path": workload.command[0] if workload.command else "",
        "Args": list(workload.command[1:]),
        "State": _state(workload),
        "Image": workload.image_id,
        "ResolvConfPath": f"{workload.directory}/resolv.conf",
        "HostnamePath": f"{workload.directory}/hostname",
        "HostsPath": f"{workload.directory}/hosts",
        "LogPath": workload.log_path,
        "Name": "/" + workload.name,
        "RestartCount": workload.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": workload.settings.security.apparmor,
        "ExecIDs": None,
        "HostConfig": host_config(workload),
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "Mounts": mounts(workload, places),
        "Config": config(workload),
        "NetworkSettings": _network_settings(workload),
        "Runtime": {"Name": workload.runtime, "Reason": workload.runtime_reason},
    }


def _state(workload: Workload) -> dict[str, Any]:
    ended = workload.exit
    return {
        "Status": workload.status,
        "Running": workload.status in LIVING,
        "Paused": workload.status == "paused",
        "Restarting": workload.status == "restarting",
        "OOMKilled": bool(ended and ended.oom_killed),
        "Dead": workload.status == "dead",
        "Pid": workload.pid,
        "ExitCode": ended.status if ended else 0,
        "Error": workload.error,
        "StartedAt": units.rfc3339(workload.started),
        "FinishedAt": units.rfc3339(workload.finished),
    }


def _network_settings(workload: Workload) -> dict[str, Any]:
    connections = workload.connections if workload.status in LIVING else ()
    first = connections[0] if connections else None
    return {
        "Bridge": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": workload.id if connections else "",
        "SandboxID": workload.id if connections else "",
        # A machine's monitor has left the namespace, in which there is nothing for others to do.
        "SandboxKey": f"/proc/{workload.pid}/ns/net" if workload.pid and workload.runtime == "container" else "",
        "Ports": _port_map(workload) if workload.status in LIVING else {},
        "Gateway": first.gateway if first else "",
        "GlobalIPv6Address": first.address6 if first else "",
        "GlobalIPv6PrefixLen": first.prefix6 if first else 0,
        "IPAddress": first.address if first else "",
        "IPPrefixLen": first.prefix if first else 0,
        "IPv6Gateway": first.gateway6 if first else "",
        "MacAddress": first.mac if first else "",
        "Networks": {connection.network: _endpoint(workload, connection) for connection in connections},
    }


def _endpoint(workload: Workload, connection: Connection) -> dict[str, Any]:
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": list(connection.aliases) or None,
        "NetworkID": connection.network_id,
        "EndpointID": workload.id,
        "Gateway": connection.gateway,
        "IPAddress": connection.address,
        "IPPrefixLen": connection.prefix,
        "IPv6Gateway": connection.gateway6,
        "GlobalIPv6Address": connection.address6,
        "GlobalIPv6PrefixLen": connection.prefix6,
        "MacAddress": connection.mac,
        "DriverOpts": None,
    }


def _port_map(workload: Workload) -> dict[str, Any]:
    result: dict[str, Any] = dict.fromkeys(workload.settings.expose)
    for port in workload.published:
        binding = {"HostIp": port.host_address or "0.0.0.0", "HostPort": str(port.host_port)}
        result[f"{port.port}/{port.protocol}"] = [*(result.get(f"{port.port}/{port.protocol}") or ()), binding]
    return result


def port_lines(published: Iterable[Published]) -> list[str]:
    """As ``docker port`` prints them."""
    ordered = sorted(published, key=lambda port: (port.port, port.protocol, port.host_address))
    return [f"{port.port}/{port.protocol} -> {host_port(port)}" for port in ordered]
