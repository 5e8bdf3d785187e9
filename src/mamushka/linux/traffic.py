"""Traffic control, as far as it takes frames from one device to another. tc-u32(8), tc-mirred(8).

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

TCA_KIND = 1
TCA_OPTIONS = 2
TCA_U32_SEL = 5
TCA_U32_ACT = 7
TCA_ACT_KIND = 1
TCA_ACT_OPTIONS = 2
TCA_MIRRED_PARMS = 2
TC_U32_TERMINAL = 1
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


def new_ingress(index: int) -> Message:
    """A place for filters on what a device receives. EEXIST where there is one, ENOENT without kernel support."""
    body = pack(tcmsg(tcm_ifindex=index, tcm_handle=_HANDLE, tcm_parent=TC_H_INGRESS)) + text(TCA_KIND, "ingress")
    return Message(RTM_NEWQDISC, body, NLM_F_CREATE | NLM_F_EXCL, f"add ingress qdisc to link {index}")


def delete_ingress(index: int) -> Message:
    """Take it away with its filters. Gone already: ENOENT or EINVAL."""
    body = pack(tcmsg(tcm_ifindex=index, tcm_handle=_HANDLE, tcm_parent=TC_H_INGRESS))
    return Message(RTM_DELQDISC, body, 0, f"delete ingress qdisc of link {index}")


def _filter(index: int, priority: int) -> bytes:
    protocol = int.from_bytes(ETH_P_ALL.to_bytes(2, "big"), byteorder)
    return pack(tcmsg(tcm_ifindex=index, tcm_parent=_INGRESS, tcm_info=priority << 16 | protocol))


def new_redirect(index: int, target: int, priority: int) -> Message:
    """Everything that the device ``index`` receives is sent by ``target`` instead. ``priority`` names the filter."""
    # A key without a mask fits every packet; a filter without a key fits none.
    selector = pack(tc_u32_sel(flags=TC_U32_TERMINAL, nkeys=1)) + pack(tc_u32_key())
    send = pack(tc_mirred(action=TC_ACT_STOLEN, eaction=TCA_EGRESS_REDIR, ifindex=target))
    action = nest(1, text(TCA_ACT_KIND, "mirred"), nest(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, send)))
    options = nest(TCA_OPTIONS, attribute(TCA_U32_SEL, selector), nest(TCA_U32_ACT, action))
    body = _filter(index, priority) + text(TCA_KIND, "u32") + options
    return Message(RTM_NEWTFILTER, body, NLM_F_CREATE | NLM_F_EXCL, f"redirect link {index} to {target}")


def delete_redirect(index: int, priority: int) -> Message:
    """Take it away. Where there is none: ENOENT or EINVAL."""
    return Message(RTM_DELTFILTER, _filter(index, priority), 0, f"delete redirection of link {index}")
