"""Conntrack entries over nfnetlink: what the kernel remembers of flows, and how it is made to forget.

include/uapi/linux/netfilter/nfnetlink_conntrack.h; the bits of a filter stand in net/netfilter/nf_internals.h
(CTA_FILTER_F_*, Linux 5.8).
"""

from __future__ import annotations

import errno

from mamushka.linux.abi import pack, sizeof
from mamushka.linux.netlink import NLA_F_NESTED, Message, attribute, attributes, nest, number
from mamushka.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6, nfgenmsg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.netlink import Netlink

NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_GET = 1
IPCTNL_MSG_CT_DELETE = 2

CTA_TUPLE_ORIG = 1
CTA_TUPLE_REPLY = 2
CTA_FILTER = 25
CTA_FILTER_REPLY_FLAGS = 2
CTA_TUPLE_IP = 1
CTA_TUPLE_PROTO = 2
CTA_IP_V4_SRC = 1
CTA_IP_V6_SRC = 3
CTA_PROTO_NUM = 1

_FILTER_SOURCE = 1 << 0
_FILTER_PROTOCOL = 1 << 3


def forget_answers_of(netfilter: Netlink, address: bytes, protocol: int) -> None:
    """Forget the flows of a protocol that ``address`` answers. Where the kernel cannot filter, none."""
    four = len(address) == 4
    general = pack(nfgenmsg(nfgen_family=NFPROTO_IPV4 if four else NFPROTO_IPV6))
    source = nest(CTA_TUPLE_IP, attribute(CTA_IP_V4_SRC if four else CTA_IP_V6_SRC, address))
    kind = nest(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, bytes([protocol])))
    wanted = nest(CTA_TUPLE_REPLY, source, kind)
    flags = nest(CTA_FILTER, number(CTA_FILTER_REPLY_FLAGS, _FILTER_SOURCE | _FILTER_PROTOCOL))
    question = Message(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, general + wanted + flags, 0, "conntrack: list")
    try:
        found = netfilter.dump(question)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):  # before Linux 5.8, or without ctnetlink
            return
        raise
    for _, body in found:
        original = attributes(body[sizeof(nfgenmsg) :]).get(CTA_TUPLE_ORIG, b"")
        _forget(netfilter, general + attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, original))


def _forget(netfilter: Netlink, body: bytes) -> None:
    try:
        netfilter.request([Message(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, body, 0, "conntrack: delete")])
    except FileNotFoundError:  # it has just run out
        pass
