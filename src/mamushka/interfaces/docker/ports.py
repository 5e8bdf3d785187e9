"""Published and exposed ports as Docker spells them: [[ADDRESS:]HOST[-LAST]:]PORT[-LAST][/tcp|udp]."""

from __future__ import annotations

from mamushka.engine.settings import Port
from mamushka.errors import Invalid

_HINT = "write [ADDRESS:][HOST_PORT:]PORT[/tcp|udp], for example 8080:80 or 127.0.0.1::53/udp"


def _bad(reason: str) -> Invalid:
    return Invalid(reason, hint=_HINT)


def _port(text: str, lowest: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= 65535):
        raise _bad(f"{text!r} is not a port number")
    return int(text)


def _range(text: str, lowest: int = 1) -> range:
    first, dash, last = text.partition("-")
    start = _port(first, lowest)
    end = _port(last, lowest) if dash else start
    if end < start:
        raise _bad(f"the range {text} ends before it starts")
    return range(start, end + 1)


def _protocol(text: str) -> tuple[str, str]:
    ports, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp"):
        raise _bad(f"{protocol!r} is not a protocol that can be published")
    return ports, protocol.lower() or "tcp"


def _address(text: str) -> str:
    """An IPv4 address, or an IPv6 one in brackets or not; checked by the C library."""
    if not text:
        return ""
    from _socket import AF_INET, AF_INET6, inet_pton

    bare = text[1:-1] if text[0] == "[" and text[-1] == "]" else text
    try:
        inet_pton(AF_INET6 if ":" in bare else AF_INET, bare)
    except (OSError, ValueError) as error:
        raise _bad(f"{text!r} is not an address") from error
    return bare


def published(text: str) -> tuple[Port, ...]:
    """What one ``-p`` publishes; ranges on both sides must be of one length, or the workload's is a single port."""
    rest, protocol = _protocol(text)
    head, _, inside = rest.rpartition(":")
    address, _, outside = head.rpartition(":") if ":" in head else ("", "", head)
    targets = _range(inside)
    host_address = _address(address)
    if not outside:
        return tuple(Port(port, protocol, host_address) for port in targets)
    sources = _range(outside, lowest=0)
    if sources[0] == 0 and len(sources) > 1:
        raise _bad(f"the range {outside} of the host's ports begins with 0, which is any free one")
    if len(targets) == 1 and len(sources) > 1:
        return (Port(targets[0], protocol, host_address, sources[0], sources[-1]),)
    if len(sources) != len(targets):
        raise _bad(f"{len(sources)} ports of the host cannot answer for {len(targets)} of the workload")
    return tuple(Port(port, protocol, host_address, host) for host, port in zip(sources, targets, strict=True))


def exposed(text: str) -> tuple[str, ...]:
    """What one ``--expose`` names: "8000-8002/udp" is three ports."""
    ports, protocol = _protocol(text)
    return tuple(f"{port}/{protocol}" for port in _range(ports))
