"""Who can be reached: the world, the host, its loopback, the cloud's metadata, and with which kinds of packets."""

from __future__ import annotations

import socket

from mamushka.engine.audit.probe import Probe
from mamushka.linux.executable import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit.attempts import Attempts
    from mamushka.engine.audit.probe import Ground, Seen

_AF_PACKET = 17
_SOL_SOCKET, _SO_SNDTIMEO = 1, 21
_ETH_P_ALL, _ICMP = 0x300, 1  # the former as it is on the wire
_NOBODYS_PORT = 1  # tcpmux, RFC 1078
_PATIENCE_US = 300_000  # for an answer from this very machine
METADATA = ("169.254.169.254", "fd00:ec2::254")
# RFC 5737 for the world; of the private ranges (RFC 1918) the last addresses, which nobody has who counts from below.
_WORLD = "192.0.2.1"
PRIVATE = ("10.255.255.254", "172.31.255.254", "192.168.255.254")


def _address(text: str, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6. ip(7), ipv6(7)."""
    if ":" in text:
        return (
            words([socket.AF_INET6], 2)
            + port.to_bytes(2)
            + bytes(4)
            + socket.inet_pton(socket.AF_INET6, text)
            + bytes(4)
        )
    return words([socket.AF_INET], 2) + port.to_bytes(2) + socket.inet_aton(text) + bytes(8)


def connect(attempts: Attempts, name: str, family: int, kind: int, address: bytes) -> None:
    """Try to connect for a moment; the step is ``name``."""
    fd = attempts.variable()
    with attempts.where(attempts.step(f"{name} socket", "socket", family, kind, 0, into=fd)):
        patience = attempts.script.place(words([0, _PATIENCE_US], 8))
        attempts.script.attempt("setsockopt", fd, _SOL_SOCKET, _SO_SNDTIMEO, patience, 16)
        attempts.step(name, "connect", fd, attempts.script.place(address), len(address))
        attempts.close(fd)


def _connect(attempts: Attempts, name: str, text: str, port: int, kind: int = socket.SOCK_STREAM) -> None:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    connect(attempts, name, family, kind, _address(text, port))


def _reached(seen: Seen, prefix: str) -> str:
    return ", ".join(name for name in seen.names(prefix) if not name.endswith(" socket") and seen.done(prefix + name))


def _try_world(attempts: Attempts, _: Ground) -> None:
    """To connect a datagram socket asks the routes and sends nothing. udp(7)."""
    _connect(attempts, "world", _WORLD, 9, socket.SOCK_DGRAM)


def _judge_world(seen: Seen, _: Ground) -> str:
    return "packets for the world have a route" if seen.done("world") else ""


def _try_private(attempts: Attempts, ground: Ground) -> None:
    for address in ground.private:
        _connect(attempts, f"private {address}", address, 9, socket.SOCK_DGRAM)


def _judge_private(seen: Seen, _: Ground) -> str:
    reached = _reached(seen, "private ")
    return f"packets for {reached} have a route" if reached else ""


def _try_host(attempts: Attempts, ground: Ground) -> None:
    for address in ground.addresses:
        _connect(attempts, f"host {address}", address, ground.canaries.open_port)


def _judge_host(seen: Seen, _: Ground) -> str:
    reached = _reached(seen, "host ")
    return f"a server on all addresses of the host answered at {reached}" if reached else ""


def _try_loopback(attempts: Attempts, ground: Ground) -> None:
    canaries = ground.canaries
    _connect(attempts, "loopback 127.0.0.1", "127.0.0.1", canaries.loopback_port)
    if canaries.loopback6_port:
        _connect(attempts, "loopback ::1", "::1", canaries.loopback6_port)
    for address in ground.addresses:  # where route_localnet is on, and what listens there is bound to the loopback
        _connect(attempts, f"loopback {address}", address, canaries.loopback_port)


def _judge_loopback(seen: Seen, _: Ground) -> str:
    reached = _reached(seen, "loopback ")
    return f"a server on the host's loopback answered at {reached}" if reached else ""


def _try_datagram(attempts: Attempts, ground: Ground) -> None:
    fd = attempts.variable()
    with attempts.where(attempts.step("datagram socket", "socket", socket.AF_INET, socket.SOCK_DGRAM, 0, into=fd)):
        address = attempts.script.place(_address("127.0.0.1", ground.canaries.datagram_port))
        secret = ground.canaries.memory
        attempts.step("datagram", "sendto", fd, attempts.script.place(secret), len(secret), 0, address, 16)
        attempts.close(fd)


def _judge_datagram(seen: Seen, _: Ground) -> str:
    return "a datagram came to the host's loopback" if seen.heard else ""


def _try_abstract(attempts: Attempts, ground: Ground) -> None:
    address = words([socket.AF_UNIX], 2) + ground.canaries.abstract
    connect(attempts, "abstract", socket.AF_UNIX, socket.SOCK_STREAM, address)


def _judge_abstract(seen: Seen, _: Ground) -> str:
    return "an abstract unix socket of the host's took a connection" if seen.done("abstract") else ""


def _try_metadata(attempts: Attempts, _: Ground) -> None:
    for address in METADATA:
        _connect(attempts, f"metadata {address}", address, 80)


def _judge_metadata(seen: Seen, _: Ground) -> str:
    reached = _reached(seen, "metadata ")
    return f"a server answered at {reached}" if reached else ""


def _try_neighbours(attempts: Attempts, ground: Ground) -> None:
    for address in ground.neighbours:
        _connect(attempts, f"neighbour {address}", address, _NOBODYS_PORT)


def _judge_neighbours(seen: Seen, ground: Ground) -> str:
    """Who refuses has been reached."""
    reached = [text for text in ground.neighbours if seen.error(f"neighbour {text}") in ("", "ECONNREFUSED")]
    return f"workloads of other networks answered at {', '.join(reached)}" if reached else ""


def _try_packets(attempts: Attempts, _: Ground) -> None:
    for name, family, protocol in (("packet", _AF_PACKET, _ETH_P_ALL), ("raw", socket.AF_INET, _ICMP)):
        fd = attempts.variable()
        with attempts.where(attempts.step(name, "socket", family, socket.SOCK_RAW, protocol, into=fd)):
            attempts.close(fd)


def _judge_packets(seen: Seen, _: Ground) -> str:
    """Without a link beside the loopback there is nobody to send to."""
    kinds = [name for name in ("packet", "raw") if seen.done(name)]
    return f"{' and '.join(kinds)} sockets, on a network with a way out" if kinds and seen.done("world") else ""


_NONE = "--network none, or one made with --internal"

PROBES = (
    Probe(
        "world",
        "network",
        15,
        "the world",
        "stolen data can leave, and attacks on others begin here",
        _NONE,
        _judge_world,
        _try_world,
    ),
    Probe(
        "private-ranges",
        "network",
        10,
        "private address ranges",
        "services of a company or a cloud trust whoever is inside",
        _NONE,
        _judge_private,
        _try_private,
    ),
    Probe(
        "host-address",
        "network",
        10,
        "services of the host",
        "what listens on all addresses was perhaps not meant for workloads",
        "--network none, or the host's firewall",
        _judge_host,
        _try_host,
    ),
    Probe(
        "host-loopback",
        "network",
        40,
        "the host's loopback",
        "databases and agents there often ask for no password",
        "no --network host",
        _judge_loopback,
        _try_loopback,
    ),
    Probe(
        "host-loopback-udp",
        "network",
        5,
        "the host's loopback, by datagram",
        "name servers and agents listen there",
        "no --network host",
        _judge_datagram,
        _try_datagram,
    ),
    Probe(
        "abstract-socket",
        "network",
        20,
        "abstract unix sockets of the host",
        "file permissions do not guard them: X11, D-Bus, shims",
        "no --network host",
        _judge_abstract,
        _try_abstract,
    ),
    Probe(
        "metadata",
        "network",
        40,
        "the cloud's metadata service",
        "it hands out the machine's own credentials",
        "no --network host; the bridge refuses it unless asked otherwise",
        _judge_metadata,
        _try_metadata,
    ),
    Probe(
        "other-networks",
        "network",
        30,
        "workloads of other networks",
        "networks are there to keep them apart",
        "no --network host",
        _judge_neighbours,
        _try_neighbours,
    ),
    Probe(
        "packet-sockets",
        "network",
        5,
        "raw and packet sockets",
        "neighbours on the link can be deceived about addresses",
        "--cap-drop NET_RAW",
        _judge_packets,
        _try_packets,
    ),
)
