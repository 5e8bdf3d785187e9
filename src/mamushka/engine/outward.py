"""The default network of an ordinary user's workload: its own namespace, and a program that carries its packets.

There is no bridge: who is not the host's root may make no link there. So workloads do not see one another, and networks
that users make are refused; what they publish is found at the host's addresses.
"""

from __future__ import annotations

from mamushka.engine.workload import Connection, Published
from mamushka.errors import Conflict, Unsupported
from mamushka.network import carrier
from mamushka.network.carrier import ADDRESS, GATEWAY, PREFIX, RESOLVER, Carrier
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.engine.paths import Paths
    from mamushka.engine.settings import Attachment, Port

_DEFAULT = ("bridge", "default", "")


@value
class Outward:
    """A workload's way out: what the shim runs, and how it looks from inside and outside."""

    carrier: Carrier
    connections: tuple[Connection, ...]
    published: tuple[Published, ...]
    resolver: str  # the server that it asks instead of those on the host's loopback; empty where there are others


def check(attachments: Sequence[Attachment]) -> None:
    """Unsupported for what needs a bridge."""
    for item in attachments:
        if item.network not in _DEFAULT:
            raise Unsupported(
                f"the network {item.network} cannot be joined: networks between workloads need root",
                hint="leave it out for a way to the world, or share one: --network container:NAME",
            )
        if item.address or item.address6 or item.mac or item.aliases:
            raise Unsupported("an ordinary user's workload cannot choose its address or aliases", hint="leave them out")


def refuse(what: str) -> Unsupported:
    """The error for commands about networks between workloads."""
    return Unsupported(
        f"cannot {what}: networks between workloads need root",
        hint="workloads that talk to one another share one: --network container:NAME",
    )


def join(paths: Paths, ports: Sequence[Port], servers: Sequence[str]) -> Outward:
    """Choose the program, the ports and the resolver. ``servers`` are the host's."""
    local = next((server for server in servers if server.startswith("127.")), "")
    resolver = local if local and all(server.startswith("127.") or ":" in server for server in servers) else ""
    ipv4, ipv6 = _ways_out()
    program = carrier.choose(slirp=bool(resolver) or not (ipv4 or ipv6))
    is_pasta = program.endswith("pasta")
    chosen = tuple((port.protocol, port.host_address, _outer(port), port.port) for port in ports)
    _check_protocols(chosen)
    words = carrier.pasta(chosen, ipv4=ipv4) if is_pasta else carrier.slirp()
    from mamushka.container.subordinate import entered_from

    return Outward(
        Carrier(program, words, chosen, paths.run, f"{entered_from or paths.run}/netns"),
        (Connection("bridge", "", ADDRESS, PREFIX, GATEWAY),) if ipv4 or not is_pasta else (),
        tuple(Published(inner, protocol, address or "0.0.0.0", outer) for protocol, address, outer, inner in chosen),
        RESOLVER if resolver and not is_pasta else "",
    )


def _check_protocols(ports: Sequence[tuple[str, str, int, int]]) -> None:
    for protocol, address, outer, _ in ports:
        if protocol not in ("tcp", "udp"):
            raise Unsupported(f"port {outer}/{protocol} cannot be published without root", hint="tcp and udp can")
        if ":" in address:
            raise Unsupported(f"cannot publish at {address} without root", hint="publish at an IPv4 address")


def _outer(port: Port) -> int:
    """The host's port: what is asked for, or a free one, or the first free one of a range."""
    last = port.host_port_last or port.host_port
    for number in range(port.host_port, last + 1):
        found = _free(port, number)
        if found:
            return found
    raise Conflict(f"port {port.host_port} of the host is in use", hint="publish another one")


def _free(port: Port, number: int) -> int:
    """The number if nobody has it, any free one for 0; 0 where it is taken. Whoever binds it later may lose it."""
    import _socket

    kind = _socket.SOCK_DGRAM if port.protocol == "udp" else _socket.SOCK_STREAM
    socket = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
    try:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        socket.bind((port.host_address or "0.0.0.0", number))
        return int(socket.getsockname()[1])
    except PermissionError:
        return number  # root's: whoever binds it says so
    except OSError:
        return 0
    finally:
        socket.close()


def _ways_out() -> tuple[bool, bool]:
    """Whether this machine has default routes of IPv4 and IPv6."""
    from mamushka.linux.rtnetlink import AF_INET, AF_INET6, open_route, routes

    with open_route() as route:
        ipv4, ipv6 = (any(not item.prefix for item in routes(route, family)) for family in (AF_INET, AF_INET6))
    return ipv4, ipv6
