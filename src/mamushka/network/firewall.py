"""The packet filter: one table of our own, its rules made once, its sets and maps changed per network and port.

    guard        raw prerouting   nobody reaches the host's loopback or, unless asked, a cloud's metadata
    prerouting   dstnat           published ports, from outside and from workloads
    output       dstnat           published ports, from the host itself, by 127.0.0.1 too
    forward      filter           networks are apart; in from outside only by published ports
    postrouting  srcnat           out with the host's address; answers return the way they came

``accept`` here lets a packet pass our table alone: the host's own rules decide as before, and none of ours
stands ahead of theirs. Every decision is a lookup in a set, so a thousand workloads cost a packet what one
does. The table's comment names the layout; a table of another layout is replaced as a whole.
"""

from __future__ import annotations

from sys import byteorder

from mamushka.linux import nftables as nft
from mamushka.linux.nftables import IFNAME, INET_PROTO, INET_SERVICE, IPV4_ADDR, IPV6_ADDR, REGISTER, Element, Set
from mamushka.network.address import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.linux.netlink import Message
    from mamushka.linux.nftables import Nftables
    from mamushka.network.network import Network, Scope

LAYOUT = "mamushka layout 1"

BRIDGES = Set("bridges", (IFNAME,))
GUARDED = Set("guarded", (IFNAME,))
INTERNAL = Set("internal", (IFNAME,))
MASQUERADED = Set("masqueraded", (IFNAME,))
PAIRS = Set("pairs", (IFNAME, IFNAME))  # each bridge beside itself: a rule cannot compare two names
UPLINKS = Set("uplinks", (IFNAME,))  # where we turned forwarding on: see forwarding.py
UPLINKS6 = Set("uplinks6", (IFNAME,))
PORTS = Set("ports", (INET_PROTO, INET_SERVICE), (IPV4_ADDR, INET_SERVICE))
PORTS_AT = Set("ports_at", (IPV4_ADDR, INET_PROTO, INET_SERVICE), (IPV4_ADDR, INET_SERVICE))
PORTS6 = Set("ports6", (INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_SERVICE))
PORTS6_AT = Set("ports6_at", (IPV6_ADDR, INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_SERVICE))
SELVES = Set("selves", (IPV4_ADDR, IPV4_ADDR))  # each published workload's address beside itself
SELVES6 = Set("selves6", (IPV6_ADDR, IPV6_ADDR))
PORT_MAPS = (PORTS, PORTS_AT, PORTS6, PORTS6_AT)
SETS = (BRIDGES, GUARDED, INTERNAL, MASQUERADED, PAIRS, UPLINKS, UPLINKS6, *PORT_MAPS, SELVES, SELVES6)

# Clouds hand out credentials here to whoever asks. All of IPv4's link-local range goes: agents hide in it.
METADATA4 = bytes([169, 254])
METADATA6 = pack("fd00:ec2::254")

_LOOPBACK = bytes([127])
# Offsets in the IPv4 and IPv6 headers.
_SOURCE, _DESTINATION = 12, 16
_SOURCE6, _DESTINATION6 = 8, 24
_DESTINATION_PORT = 2  # offset in the TCP and UDP headers


def _in(member_of: Set) -> bytes:
    return nft.meta(nft.META_IIFNAME) + nft.lookup(member_of.name)


def _out(member_of: Set, *, not_in: bool = False) -> bytes:
    return nft.meta(nft.META_OIFNAME) + nft.lookup(member_of.name, invert=not_in)


def _in_and_out_by_one_bridge() -> bytes:
    beside = REGISTER + IFNAME[1] // 4
    return nft.meta(nft.META_IIFNAME) + nft.meta(nft.META_OIFNAME, beside) + nft.lookup(PAIRS.name)


def _to_itself(selves: Set) -> bytes:
    family, offset, width = (nft.NFPROTO_IPV4, _SOURCE, 4) if selves is SELVES else (nft.NFPROTO_IPV6, _SOURCE6, 16)
    source = nft.payload(nft.NETWORK_HEADER, offset, width)
    destination = nft.payload(nft.NETWORK_HEADER, offset + width, width, REGISTER + width // 4)
    return _family(family) + source + destination + nft.lookup(selves.name)


def _family(protocol: int) -> bytes:
    return nft.meta(nft.META_NFPROTO) + nft.compare(bytes([protocol]))


def _address(offset: int, prefix: bytes) -> bytes:
    """An address in the header that begins with these bytes."""
    family = nft.NFPROTO_IPV6 if len(prefix) == 16 else nft.NFPROTO_IPV4
    return _family(family) + nft.payload(nft.NETWORK_HEADER, offset, len(prefix)) + nft.compare(prefix)


def _any_bit(load: bytes, bits: int) -> bytes:
    return load + nft.mask(bits.to_bytes(4, byteorder)) + nft.compare(bytes(4), nft.CMP_NEQ)


def _published() -> bytes:
    """By a connection that one of our maps sent somewhere else."""
    return _any_bit(nft.conntrack(nft.CT_STATUS), nft.IPS_DST_NAT)


def _known() -> bytes:
    """Of a connection that was let through before, or an error about one."""
    return _any_bit(nft.conntrack(nft.CT_STATE), nft.CT_STATE_ESTABLISHED | nft.CT_STATE_RELATED)


def _to_this_host() -> bytes:
    return nft.fib_address_type() + nft.compare(nft.RTN_LOCAL.to_bytes(4, byteorder))


def _redirect(ports: Set) -> bytes:
    """Look (destination, protocol, port), or what of it the map has for a key, up; go where it says."""
    family, width = (nft.NFPROTO_IPV4, 4) if ports.data[0] == IPV4_ADDR else (nft.NFPROTO_IPV6, 16)
    load, register = _family(family), REGISTER
    if len(ports.key) == 3:
        offset = _DESTINATION if width == 4 else _DESTINATION6
        load += nft.payload(nft.NETWORK_HEADER, offset, width, register)
        register += width // 4
    load += nft.meta(nft.META_L4PROTO, register)
    load += nft.payload(nft.TRANSPORT_HEADER, _DESTINATION_PORT, 2, register + 1)
    return load + nft.lookup(ports.name, into=REGISTER) + nft.dnat(family, REGISTER, REGISTER + width // 4)


def _chains(table: str) -> list[Message]:
    return [
        nft.new_chain(table, "publish"),
        nft.new_chain(table, "guard", kind="filter", hook=nft.PRE_ROUTING, priority=nft.PRIORITY_RAW),
        nft.new_chain(table, "prerouting", kind="nat", hook=nft.PRE_ROUTING, priority=nft.PRIORITY_DSTNAT),
        nft.new_chain(table, "output", kind="nat", hook=nft.LOCAL_OUT, priority=nft.PRIORITY_DSTNAT),
        nft.new_chain(table, "forward", kind="filter", hook=nft.FORWARD, priority=nft.PRIORITY_FILTER),
        nft.new_chain(table, "postrouting", kind="nat", hook=nft.POST_ROUTING, priority=nft.PRIORITY_SRCNAT),
    ]


def _rules() -> list[tuple[str, bytes]]:
    accept, drop, leave = nft.verdict(nft.NF_ACCEPT), nft.verdict(nft.NF_DROP), nft.verdict(nft.NFT_RETURN)
    publish = nft.verdict(nft.NFT_JUMP, "publish")
    return [
        # A bridge routes 127/8 (for published ports, below), so nothing else may come by it with such an address.
        ("guard", _in(BRIDGES) + _address(_DESTINATION, _LOOPBACK) + drop),
        ("guard", _in(BRIDGES) + _address(_SOURCE, _LOOPBACK) + drop),
        ("guard", _in(GUARDED) + _address(_DESTINATION, METADATA4) + nft.reject()),
        ("guard", _in(GUARDED) + _address(_DESTINATION6, METADATA6) + nft.reject()),
        # The more particular map first; both end the chain where they know the port.
        *(("publish", _redirect(ports)) for ports in (PORTS_AT, PORTS, PORTS6_AT, PORTS6)),
        # A neighbour that sends to 127.0.0.1 must not be let in by a port published there.
        ("prerouting", _address(_DESTINATION, _LOOPBACK) + leave),
        ("prerouting", _to_this_host() + publish),
        ("output", _to_this_host() + publish),
        ("forward", _known() + accept),
        ("forward", _in_and_out_by_one_bridge() + accept),
        ("forward", _in(INTERNAL) + drop),
        ("forward", _out(INTERNAL) + drop),
        ("forward", _out(BRIDGES) + _published() + accept),
        ("forward", _out(BRIDGES) + drop),
        # Forwarding is on for these links because of us; between them the host is no more a router than before.
        ("forward", _family(nft.NFPROTO_IPV4) + _in(UPLINKS) + _out(UPLINKS) + drop),
        ("forward", _family(nft.NFPROTO_IPV6) + _in(UPLINKS6) + _out(UPLINKS6) + drop),
        ("postrouting", _out(BRIDGES) + _address(_SOURCE, _LOOPBACK) + nft.masquerade()),
        # From a workload by the host's address to its own network: the answer must come back through the host.
        # With br_netfilter such a packet is bridged and comes here without its incoming link. Its answer is seen
        # by conntrack then, except when a workload calls itself.
        ("postrouting", _in_and_out_by_one_bridge() + _published() + nft.masquerade()),
        ("postrouting", _to_itself(SELVES) + _published() + nft.masquerade()),
        ("postrouting", _to_itself(SELVES6) + _published() + nft.masquerade()),
        ("postrouting", _in(MASQUERADED) + _out(BRIDGES, not_in=True) + nft.masquerade()),
    ]


def layout(scope: Scope) -> list[Message]:
    """The whole table, empty of networks and ports."""
    table = scope.table
    sets = [nft.new_set(table, definition, number) for number, definition in enumerate(SETS, 1)]
    rules = [nft.new_rule(table, chain, expressions) for chain, expressions in _rules()]
    return [nft.new_table(table, LAYOUT), *sets, *_chains(table), *rules]


def present(filter: Nftables, scope: Scope) -> bool:
    """Whether our table stands and is of this layout. One question; nothing is changed."""
    return filter.table_comment(scope.table) == LAYOUT


def ensure(filter: Nftables, scope: Scope) -> bool:
    """Make the table where it is missing or of another layout; True when it was made and is empty."""
    comment = filter.table_comment(scope.table)
    if comment == LAYOUT:
        return False
    stale = [] if comment is None else [nft.delete_table(scope.table)]
    filter.commit([*stale, *layout(scope)])
    return True


def remove(filter: Nftables, scope: Scope) -> None:
    """Take the table away; harmless when it is gone."""
    try:
        filter.commit([nft.delete_table(scope.table)])
    except FileNotFoundError:
        pass


def interface_key(interface: str) -> bytes:
    """A link's name as it lies in registers."""
    return interface.encode().ljust(IFNAME[1], b"\0")


def _memberships(network: Network) -> Iterator[tuple[Set, Element]]:
    key = interface_key(network.bridge)
    yield BRIDGES, Element(key)
    yield PAIRS, Element(key + key)
    if network.internal:
        yield INTERNAL, Element(key)
    elif network.masquerade:
        yield MASQUERADED, Element(key)
    if not network.metadata:
        yield GUARDED, Element(key)


def admit(scope: Scope, network: Network) -> list[Message]:
    """Let a network take part; harmless when it does."""
    return [nft.add_elements(scope.table, owner.name, [member]) for owner, member in _memberships(network)]


def dismiss(filter: Nftables, scope: Scope, bridge: str) -> None:
    """Forget a bridge, whatever it took part in."""
    key = interface_key(bridge)
    for definition in (BRIDGES, GUARDED, INTERNAL, MASQUERADED, PAIRS):
        discard(filter, scope, definition, Element(key * len(definition.key)))


def discard(filter: Nftables, scope: Scope, definition: Set, element: Element) -> bool:
    """Take one member out; False when it, or the whole table, was gone already."""
    try:
        filter.commit([nft.delete_elements(scope.table, definition.name, [Element(element.key)])])
    except FileNotFoundError:
        return False
    return True
