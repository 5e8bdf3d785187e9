"""rtnetlink: links, addresses and routes as messages, and what a dump of them says.

Bodies are the structs of include/uapi/linux/{rtnetlink,if_link,if_addr}.h followed by attributes. Addresses
are packed bytes, four for IPv4 and sixteen for IPv6; MACs are six bytes.
"""

from __future__ import annotations

import errno

from mamushka.linux.abi import pack, s32, sizeof, struct, u8, u16, u32, unpack
from mamushka.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    as_number,
    as_text,
    attribute,
    attributes,
    nest,
    number,
    text,
)
from mamushka.values import value

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
RTM_NEWNEIGH = 28
RTM_GETNEIGH = 30

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IF_OPER_UP = 6
IFNAMSIZ = 16

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_OPERSTATE = 16
IFLA_LINKINFO = 18
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_BRPORT_MODE = 4
VETH_INFO_PEER = 1
RTEXT_FILTER_SKIP_STATS = 8

IFLA_INET_CONF = 1
IPV4_DEVCONF_FORWARDING = 1
IPV4_DEVCONF_ROUTE_LOCALNET = 26
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_FLAGS = 8
IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_TABLE = 15
RT_TABLE_MAIN = 254
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RTNH_F_ONLINK = 4
NDA_DST = 1
NDA_LLADDR = 2
NUD_PERMANENT = 0x80
RTN_UNICAST = 1
RTN_PROHIBIT = 8


@struct
class ifinfomsg:
    """One link. include/uapi/linux/rtnetlink.h."""

    ifi_family: u8 = 0
    ifi_type: u16 = 0
    ifi_index: s32 = 0
    ifi_flags: u32 = 0
    ifi_change: u32 = 0


@struct
class ifaddrmsg:
    """One address of a link. include/uapi/linux/if_addr.h."""

    ifa_family: u8 = 0
    ifa_prefixlen: u8 = 0
    ifa_flags: u8 = 0
    ifa_scope: u8 = 0
    ifa_index: u32 = 0


@struct
class rtmsg:
    """One route. include/uapi/linux/rtnetlink.h."""

    rtm_family: u8 = 0
    rtm_dst_len: u8 = 0
    rtm_src_len: u8 = 0
    rtm_tos: u8 = 0
    rtm_table: u8 = 0
    rtm_protocol: u8 = 0
    rtm_scope: u8 = 0
    rtm_type: u8 = 0
    rtm_flags: u32 = 0


@struct
class ndmsg:
    """One neighbour. include/uapi/linux/neighbour.h."""

    ndm_family: u8 = 0
    ndm_pad1: u8 = 0
    ndm_pad2: u16 = 0
    ndm_ifindex: s32 = 0
    ndm_state: u16 = 0
    ndm_flags: u8 = 0
    ndm_type: u8 = 0


@value
class Link:
    """What the kernel says of one network device."""

    index: int
    name: str
    kind: str = ""  # bridge, veth, …; empty for a physical one
    flags: int = 0
    master: int = 0  # the index of the bridge that it is a port of
    group: int = 0
    mtu: int = 0
    address: bytes = b""
    operstate: int = 0  # RFC 2863's, as IF_OPER_…

    @property
    def up(self) -> bool:
        """Whether the administrator wants it up."""
        return bool(self.flags & IFF_UP)


@value
class Address:
    """One address of one link."""

    index: int
    family: int
    prefix: int
    address: bytes
    peer: bytes = b""  # the other end's, of a point-to-point link
    broadcast: bytes = b""
    kept: bool = False  # permanent and of global scope: neither leased nor made by the kernel


@value
class Route:
    """One unicast route of any table; an empty destination is the default."""

    family: int
    prefix: int
    destination: bytes
    index: int  # of the outgoing link, 0 for several
    gateway: bytes = b""
    source: bytes = b""  # the address that is preferred for what takes it
    metric: int = 0
    table: int = RT_TABLE_MAIN
    scope: int = RT_SCOPE_UNIVERSE
    protocol: int = RTPROT_BOOT  # who made it
    flags: int = 0


@value
class Neighbour:
    """One neighbour's hardware address."""

    index: int
    address: bytes
    mac: bytes
    permanent: bool


def open_route() -> Netlink:
    """A socket for this module's messages, in the thread's network namespace."""
    return Netlink(NETLINK_ROUTE)


def _properties(name: str, mac: bytes, mtu: int, group: int) -> bytes:
    parts = [text(IFLA_IFNAME, name)]
    if mac:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if mtu:
        parts.append(number(IFLA_MTU, mtu))
    if group:
        parts.append(number(IFLA_GROUP, group))
    return b"".join(parts)


def new_bridge(name: str, *, mac: bytes = b"", mtu: int = 0, group: int = 0) -> Message:
    """A bridge without spanning tree, still down. EEXIST where the name is taken."""
    kind = nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    body = pack(ifinfomsg()) + _properties(name, mac, mtu, group) + kind
    return Message(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL, f"create bridge {name}")


def new_veth(
    name: str, peer: str, *, peer_namespace: int, peer_mac: bytes = b"", master: int = 0, mtu: int = 0, group: int = 0
) -> Message:
    """A pair of links, both down: one here, a port of ``master``; its peer born in another namespace."""
    far = pack(ifinfomsg()) + _properties(peer, peer_mac, mtu, 0) + number(IFLA_NET_NS_FD, peer_namespace)
    pair = nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), nest(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, far)))
    body = pack(ifinfomsg()) + _properties(name, b"", mtu, group) + pair
    if master:
        body += number(IFLA_MASTER, master)
    return Message(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL, f"create veth {name}")


def _named(link: int | str, flags: int = 0) -> bytes:
    index, name = (link, b"") if isinstance(link, int) else (0, text(IFLA_IFNAME, link))
    return pack(ifinfomsg(ifi_index=index, ifi_flags=flags, ifi_change=flags)) + name


def link_up(link: int | str) -> Message:
    """Bring a link up, by index or name."""
    return Message(RTM_NEWLINK, _named(link, IFF_UP), 0, f"bring link {link} up")


def bridge_port_up(name: str) -> Message:
    """Bring a bridge's port up, in hairpin mode: what came in by it may go out by it again."""
    mode = nest(IFLA_INFO_SLAVE_DATA, number(IFLA_BRPORT_MODE, 1, 1))
    port = nest(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), mode)
    return Message(RTM_NEWLINK, _named(name, IFF_UP) + port, 0, f"bring bridge port {name} up")


def set_link(link: int | str, *, mac: bytes = b"", mtu: int = 0, master: int = -1) -> Message:
    """Change a link's hardware address, its MTU, the bridge that it is a port of (0: none more)."""
    body = _named(link) + (attribute(IFLA_ADDRESS, mac) if mac else b"")
    body += (number(IFLA_MTU, mtu) if mtu else b"") + (number(IFLA_MASTER, master) if master >= 0 else b"")
    return Message(RTM_SETLINK, body, 0, f"change link {link}")


def configure_link(link: int | str, *, ipv4: tuple[tuple[int, int], ...] = (), link_local: bool = True) -> Message:
    """Set IPV4_DEVCONF_* values of a link, and whether it makes itself an IPv6 link-local address."""
    families = []
    if ipv4:
        conf = nest(IFLA_INET_CONF, *(number(key, item) for key, item in ipv4))
        families.append(nest(AF_INET, conf))
    if not link_local:
        families.append(nest(AF_INET6, number(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE, 1)))
    return Message(RTM_SETLINK, _named(link) + nest(IFLA_AF_SPEC, *families), 0, f"configure link {link}")


def move_link(index: int, namespace: int, name: str) -> Message:
    """Move a link into another network namespace and name it there; %d in the name is the first free number.

    It arrives down and without addresses. Where the name is taken it may have moved all the same.
    """
    body = _named(index) + number(IFLA_NET_NS_FD, namespace) + text(IFLA_IFNAME, name)
    return Message(RTM_NEWLINK, body, 0, f"move link {index} as {name}")


def delete_link(index: int) -> Message:
    """Remove a link; a veth takes its peer along."""
    return Message(RTM_DELLINK, pack(ifinfomsg(ifi_index=index)), 0, f"delete link {index}")


def remove_link(route: Netlink, index: int) -> None:
    """delete_link, harmless when it is gone."""
    try:
        route.request([delete_link(index)])
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def new_address(index: int, address: bytes, prefix: int, *, peer: bytes = b"", broadcast: bytes = b"") -> Message:
    """Give a link an address with its subnet's route; IPv6 without duplicate detection: we hand them out."""
    family = AF_INET if len(address) == 4 else AF_INET6
    body = pack(ifaddrmsg(ifa_family=family, ifa_prefixlen=prefix, ifa_index=index))
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, peer or address)
    if broadcast:
        body += attribute(IFA_BROADCAST, broadcast)
    if family == AF_INET6:
        body += number(IFA_FLAGS, IFA_F_NODAD)
    return Message(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_REPLACE, "add address")


def delete_address(index: int, address: bytes, prefix: int) -> Message:
    """Take an address from a link, with the routes that need it."""
    family = AF_INET if len(address) == 4 else AF_INET6
    body = pack(ifaddrmsg(ifa_family=family, ifa_prefixlen=prefix, ifa_index=index))
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    return Message(RTM_DELADDR, body, 0, "delete address")


def new_route(route: Route) -> Message:
    """A route as it was found. EEXIST where there is one to that destination."""
    body = pack(
        rtmsg(
            rtm_family=route.family,
            rtm_dst_len=route.prefix,
            rtm_table=RT_TABLE_MAIN,
            rtm_protocol=route.protocol,
            rtm_scope=route.scope,
            rtm_type=RTN_UNICAST,
            rtm_flags=route.flags & RTNH_F_ONLINK,
        )
    )
    body += number(RTA_OIF, route.index)
    for kind, item in ((RTA_DST, route.destination), (RTA_GATEWAY, route.gateway), (RTA_PREFSRC, route.source)):
        body += attribute(kind, item) if item else b""
    body += number(RTA_PRIORITY, route.metric) if route.metric else b""
    return Message(RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_EXCL, "add route")


def new_neighbour(neighbour: Neighbour) -> Message:
    """Tell a neighbour's hardware address for good."""
    family = AF_INET if len(neighbour.address) == 4 else AF_INET6
    body = pack(ndmsg(ndm_family=family, ndm_ifindex=neighbour.index, ndm_state=NUD_PERMANENT))
    body += attribute(NDA_DST, neighbour.address) + attribute(NDA_LLADDR, neighbour.mac)
    return Message(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE, "add neighbour")


def new_default_route(index: int, gateway: bytes) -> Message:
    """Everything else goes by ``gateway``."""
    family = AF_INET if len(gateway) == 4 else AF_INET6
    body = pack(
        rtmsg(
            rtm_family=family,
            rtm_table=RT_TABLE_MAIN,
            rtm_protocol=RTPROT_BOOT,
            rtm_scope=RT_SCOPE_UNIVERSE,
            rtm_type=RTN_UNICAST,
        )
    )
    body += attribute(RTA_GATEWAY, gateway) + number(RTA_OIF, index)
    return Message(RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_EXCL, "add default route")


def new_prohibition(address: bytes, prefix: int) -> Message:
    """Whoever sends there is told that it is prohibited (EACCES), at once. ip-route(8)."""
    family = AF_INET if len(address) == 4 else AF_INET6
    body = pack(
        rtmsg(
            rtm_family=family,
            rtm_dst_len=prefix,
            rtm_table=RT_TABLE_MAIN,
            rtm_protocol=RTPROT_BOOT,
            rtm_scope=RT_SCOPE_UNIVERSE,
            rtm_type=RTN_PROHIBIT,
        )
    )
    body += attribute(RTA_DST, address)
    return Message(RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_EXCL, "add prohibition")


def _link(body: bytes) -> Link:
    header = unpack(ifinfomsg, body)
    found = attributes(body[sizeof(ifinfomsg) :])
    information = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=header.ifi_index,
        name=as_text(found.get(IFLA_IFNAME, b"")),
        kind=as_text(information.get(IFLA_INFO_KIND, b"")),
        flags=header.ifi_flags,
        master=as_number(found.get(IFLA_MASTER, b"")),
        group=as_number(found.get(IFLA_GROUP, b"")),
        mtu=as_number(found.get(IFLA_MTU, b"")),
        address=found.get(IFLA_ADDRESS, b""),
        operstate=as_number(found.get(IFLA_OPERSTATE, b"")),
    )


def find_link(route: Netlink, name: str) -> Link | None:
    """The link of that name, if there is one."""
    question = pack(ifinfomsg()) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS) + text(IFLA_IFNAME, name)
    body = route.get(Message(RTM_GETLINK, question, 0, f"find link {name}"))
    return None if body is None else _link(body)


def links(route: Netlink) -> list[Link]:
    """Every link of the namespace."""
    question = pack(ifinfomsg()) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    answers = route.dump(Message(RTM_GETLINK, question, 0, "list links"))
    return [_link(body) for kind, body in answers if kind == RTM_NEWLINK]


def addresses(route: Netlink, family: int = AF_UNSPEC) -> list[Address]:
    """Every address of the namespace."""
    found = []
    for kind, body in route.dump(Message(RTM_GETADDR, pack(ifaddrmsg(ifa_family=family)), 0, "list addresses")):
        header = unpack(ifaddrmsg, body)
        parts = attributes(body[sizeof(ifaddrmsg) :])
        far = parts.get(IFA_ADDRESS, b"")
        address = parts.get(IFA_LOCAL) or far
        if kind == RTM_NEWADDR:
            flags = as_number(parts.get(IFA_FLAGS, b"")) or header.ifa_flags
            found.append(
                Address(
                    header.ifa_index,
                    header.ifa_family,
                    header.ifa_prefixlen,
                    address,
                    peer=far if far != address else b"",
                    broadcast=parts.get(IFA_BROADCAST, b""),
                    kept=bool(flags & IFA_F_PERMANENT) and header.ifa_scope == RT_SCOPE_UNIVERSE,
                )
            )
    return found


def routes(route: Netlink, family: int = AF_INET) -> list[Route]:
    """Every unicast route of the namespace."""
    found = []
    for kind, body in route.dump(Message(RTM_GETROUTE, pack(rtmsg(rtm_family=family)), 0, "list routes")):
        header = unpack(rtmsg, body)
        parts = attributes(body[sizeof(rtmsg) :])
        if kind == RTM_NEWROUTE and header.rtm_type == RTN_UNICAST:
            found.append(
                Route(
                    header.rtm_family,
                    header.rtm_dst_len,
                    parts.get(RTA_DST, b""),
                    as_number(parts.get(RTA_OIF, b"")),
                    gateway=parts.get(RTA_GATEWAY, b""),
                    source=parts.get(RTA_PREFSRC, b""),
                    metric=as_number(parts.get(RTA_PRIORITY, b"")),
                    table=as_number(parts.get(RTA_TABLE, b"")) or header.rtm_table,
                    scope=header.rtm_scope,
                    protocol=header.rtm_protocol,
                    flags=header.rtm_flags,
                )
            )
    return found


def prohibitions(route: Netlink) -> list[tuple[bytes, int]]:
    """(address, prefix) of what ``new_prohibition`` has forbidden in the namespace."""
    found = []
    for family in (AF_INET, AF_INET6):
        for kind, body in route.dump(Message(RTM_GETROUTE, pack(rtmsg(rtm_family=family)), 0, "list routes")):
            header = unpack(rtmsg, body)
            address = attributes(body[sizeof(rtmsg) :]).get(RTA_DST, b"")
            if kind == RTM_NEWROUTE and header.rtm_type == RTN_PROHIBIT and address:
                found.append((address, int(header.rtm_dst_len)))
    return found


def neighbours(route: Netlink) -> list[Neighbour]:
    """Every neighbour whose hardware address the namespace knows."""
    found = []
    for kind, body in route.dump(Message(RTM_GETNEIGH, pack(ndmsg()), 0, "list neighbours")):
        header = unpack(ndmsg, body)
        parts = attributes(body[sizeof(ndmsg) :])
        mac, address = parts.get(NDA_LLADDR, b""), parts.get(NDA_DST, b"")
        if kind == RTM_NEWNEIGH and mac and address:
            permanent = bool(header.ndm_state & NUD_PERMANENT)
            found.append(Neighbour(header.ndm_ifindex, address, mac, permanent))
    return found
