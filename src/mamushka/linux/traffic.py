"""Traffic control, as far as it takes frames from one device to another, or none. tc-u32(8), tc-mirred(8).

An ingress qdisc is where filters can be attached to what a device receives, in front of the host's own protocols: what
a filter steals there, they never see.
"""

from __future__ import annotations

from sys import byteorder

from mamushka.linux.abi import pack, s16, s32, struct, u8, u16, u32
from mamushka.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, attribute, nest, text

RTM_NEWQDISC = 36
RTM_DELQDISC = 37
RTM_NEWTFILTER = 44
RTM_DELTFILTER = 45

TC_H_INGRESS = 0xFFFFFFF1
_HANDLE = 0xFFFF0000  # the only one that an ingress qdisc can have
_INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): what a device receives, also of a clsact qdisc
ETH_P_ALL = 3
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD

TCA_KIND = 1
TCA_OPTIONS = 2
TCA_U32_SEL = 5
TCA_U32_ACT = 7
TCA_ACT_KIND = 1
TCA_ACT_OPTIONS = 2
TCA_MIRRED_PARMS = 2
TCA_GACT_PARMS = 2
TC_U32_TERMINAL = 1
TC_ACT_SHOT = 2
TC_ACT_STOLEN = 4
TCA_EGRESS_REDIR = 1


@struct
class tcmsg:
    """Before every message about traffic control. include/uapi/linux/rtnetlink.h."""

    tcm_family: u8 = 0
    tcm__pad1: u8 = 0
    tcm__pad2: u16 = 0
    tcm_ifindex: s32 = 0
    tcm_handle: u32 = 0
    tcm_parent: u32 = 0
    tcm_info: u32 = 0


@struct
class tc_u32_key:
    """What a word of a packet must be. include/uapi/linux/pkt_cls.h."""

    mask: u32 = 0
    val: u32 = 0
    off: s32 = 0
    offmask: s32 = 0


@struct
class tc_u32_sel:
    """Before the keys."""

    flags: u8 = 0
    offshift: u8 = 0
    nkeys: u8 = 0
    offmask: u16 = 0
    off: u16 = 0
    offoff: s16 = 0
    hoff: s16 = 0
    hmask: u32 = 0


@struct
class tc_mirred:
    """Send to a device. include/uapi/linux/tc_act/tc_mirred.h."""

    index: u32 = 0
    capab: u32 = 0
    action: s32 = 0
    refcnt: s32 = 0
    bindcnt: s32 = 0
    eaction: s32 = 0
    ifindex: u32 = 0


@struct
class tc_gact:
    """Do what the action says. include/uapi/linux/tc_act/tc_gact.h."""

    index: u32 = 0
    capab: u32 = 0
    action: s32 = 0
    refcnt: s32 = 0
    bindcnt: s32 = 0


def new_ingress(index: int) -> Message:
    """A place for filters on what a device receives. EEXIST where there is one, ENOENT without kernel support."""
    body = pack(tcmsg(tcm_ifindex=index, tcm_handle=_HANDLE, tcm_parent=TC_H_INGRESS)) + text(TCA_KIND, "ingress")
    return Message(RTM_NEWQDISC, body, NLM_F_CREATE | NLM_F_EXCL, f"add ingress qdisc to link {index}")


def delete_ingress(index: int) -> Message:
    """Take it away with its filters. Gone already: ENOENT or EINVAL."""
    body = pack(tcmsg(tcm_ifindex=index, tcm_handle=_HANDLE, tcm_parent=TC_H_INGRESS))
    return Message(RTM_DELQDISC, body, 0, f"delete ingress qdisc of link {index}")


def _filter(index: int, priority: int, protocol: int = ETH_P_ALL) -> bytes:
    number = int.from_bytes(protocol.to_bytes(2, "big"), byteorder)
    return pack(tcmsg(tcm_ifindex=index, tcm_parent=_INGRESS, tcm_info=priority << 16 | number))


def new_redirect(index: int, target: int, priority: int) -> Message:
    """Everything that the device ``index`` receives is sent by ``target`` instead. ``priority`` names the filter."""
    send = pack(tc_mirred(action=TC_ACT_STOLEN, eaction=TCA_EGRESS_REDIR, ifindex=target))
    # A key without a mask fits every packet; a filter without a key fits none.
    options = _options([tc_u32_key()], "mirred", attribute(TCA_MIRRED_PARMS, send))
    body = _filter(index, priority) + options
    return Message(RTM_NEWTFILTER, body, NLM_F_CREATE | NLM_F_EXCL, f"redirect link {index} to {target}")


def new_drop(index: int, priority: int, address: bytes, prefix: int) -> Message:
    """Nothing that the device receives for these destinations of IP goes on. Filters of a lower ``priority`` first."""
    protocol, offset = (ETH_P_IP, _DESTINATION) if len(address) == 4 else (ETH_P_IPV6, _DESTINATION6)
    mask = ((1 << prefix) - 1 << len(address) * 8 - prefix).to_bytes(len(address), "big")
    keys = [
        tc_u32_key(
            mask=int.from_bytes(mask[at : at + _WORD], byteorder),
            val=int.from_bytes(address[at : at + _WORD], byteorder),
            off=offset + at,
        )
        for at in range(0, len(address), _WORD)
        if any(mask[at : at + _WORD])
    ]
    options = _options(keys, "gact", attribute(TCA_GACT_PARMS, pack(tc_gact(action=TC_ACT_SHOT))))
    body = _filter(index, priority, protocol) + options
    return Message(RTM_NEWTFILTER, body, NLM_F_CREATE | NLM_F_EXCL, f"drop what link {index} receives for /{prefix}")


# Where a header of IP says where to: RFC 791, section 3.1; RFC 8200, section 3. In words, as u32 compares.
_DESTINATION, _DESTINATION6 = 16, 24
_WORD = 4


def _options(keys: list[tc_u32_key], action: str, parameters: bytes) -> bytes:
    """A filter's kind, what it looks at, and what it does."""
    selector = pack(tc_u32_sel(flags=TC_U32_TERMINAL, nkeys=len(keys))) + b"".join(map(pack, keys))
    act = nest(1, text(TCA_ACT_KIND, action), nest(TCA_ACT_OPTIONS, parameters))
    return text(TCA_KIND, "u32") + nest(TCA_OPTIONS, attribute(TCA_U32_SEL, selector), nest(TCA_U32_ACT, act))


def delete_redirect(index: int, priority: int) -> Message:
    """Take it away. Where there is none: ENOENT or EINVAL."""
    return Message(RTM_DELTFILTER, _filter(index, priority), 0, f"delete redirection of link {index}")
