"""nf_tables: tables, chains, rules, sets and elements in transactions over nfnetlink.

A rule is a list of expressions that work on registers: ``meta`` and ``payload`` load, ``compare`` and
``lookup`` decide whether the rule goes on, ``verdict``, ``dnat`` and ``masquerade`` act. The registers are
sixteen of four bytes; concatenations are fields in neighbouring registers, each padded to four bytes. All
numbers in attributes are big-endian. include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from sys import byteorder

from mamushka.linux.abi import pack, sizeof, struct, u8, u16
from mamushka.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Netlink,
    as_text,
    attribute,
    attributes,
    each_attribute,
    nest,
    text,
)
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11

NFT_MSG_NEWTABLE = 0
NFT_MSG_GETTABLE = 1
NFT_MSG_DELTABLE = 2
NFT_MSG_NEWCHAIN = 3
NFT_MSG_GETCHAIN = 4
NFT_MSG_NEWRULE = 6
NFT_MSG_NEWSET = 9
NFT_MSG_NEWSETELEM = 12
NFT_MSG_GETSETELEM = 13
NFT_MSG_DELSETELEM = 14

NFTA_TABLE_NAME, NFTA_TABLE_USERDATA = 1, 6
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_LIST_ELEM = 1
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 1, 2, 3, 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_ID, NFTA_SET_USERDATA = 6, 7, 10, 13
NFT_SET_MAP = 0x8
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2

NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_RETURN = 0, 1, -3, -5
NFT_REG_VERDICT = 0
# The sixteen four-byte registers begin here; nft calls them reg 1 (four of them) and so on.
REGISTER = 8

# Types as nft(8) numbers them, with their size in a register file; a concatenation shifts them together.
IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE, IFNAME = (7, 4), (8, 16), (12, 4), (13, 4), (41, 16)
_TYPE_BITS = 6

PRE_ROUTING, LOCAL_IN, FORWARD, LOCAL_OUT, POST_ROUTING = range(5)
PRIORITY_RAW, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT = -300, -100, 0, 100

META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 6, 7, 15, 16
CT_STATE, CT_STATUS = 0, 2
CT_STATE_ESTABLISHED, CT_STATE_RELATED = 2, 4
IPS_DST_NAT = 0x20
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
CMP_EQ, CMP_NEQ = 0, 1
NFT_LOOKUP_F_INV = 1
NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR, RTN_LOCAL = 3, 2, 2
NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_ADMIN_PROHIBITED = 2, 3


@struct
class nfgenmsg:
    """Before every nfnetlink body. include/uapi/linux/netfilter/nfnetlink.h."""

    nfgen_family: u8 = 0
    version: u8 = 0
    res_id: u16 = 0  # big-endian


# libnftnl's type, length, value: the key's byte order, without which nft(8) prints names backwards.
_HOST_ORDER = bytes([0, 4]) + (1).to_bytes(4, byteorder)
_GENERAL = sizeof(nfgenmsg)
_INET = pack(nfgenmsg(nfgen_family=NFPROTO_INET))


@value
class Set:
    """A named set or, with ``data``, a map; fields are (type, size in registers) as IPV4_ADDR is."""

    name: str
    key: tuple[tuple[int, int], ...]
    data: tuple[tuple[int, int], ...] = ()


@value
class Element:
    """A member of a set, or a pair of a map, as it lies in registers."""

    key: bytes
    data: bytes = b""


def _number(kind: int, item: int, size: int = 4) -> bytes:
    return attribute(kind, item.to_bytes(size, "big", signed=item < 0))


# expressions; the numbers of their attributes are those of NFTA_<NAME>_* in the header


def _expression(name: str, *parts: bytes) -> bytes:
    return nest(NFTA_LIST_ELEM, text(NFTA_EXPR_NAME, name), nest(NFTA_EXPR_DATA, *parts))


def meta(key: int, register: int = REGISTER) -> bytes:
    """Load something known about the packet: META_*."""
    return _expression("meta", _number(1, register), _number(2, key))


def payload(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    """Load bytes of a header."""
    return _expression("payload", _number(1, register), _number(2, base), _number(3, offset), _number(4, length))


def conntrack(key: int) -> bytes:
    """Load something known about the connection: CT_*."""
    return _expression("ct", _number(1, REGISTER), _number(2, key))


def fib_address_type() -> bytes:
    """Load what the destination is to this host: RTN_LOCAL, …."""
    return _expression("fib", _number(1, REGISTER), _number(2, NFT_FIB_RESULT_ADDRTYPE), _number(3, NFTA_FIB_F_DADDR))


def mask(bits: bytes) -> bytes:
    """Keep these bits of the first register."""
    zero = nest(5, attribute(NFTA_DATA_VALUE, bytes(len(bits))))
    kept = nest(4, attribute(NFTA_DATA_VALUE, bits))
    return _expression("bitwise", _number(1, REGISTER), _number(2, REGISTER), _number(3, len(bits)), kept, zero)


def compare(operand: bytes, operator: int = CMP_EQ) -> bytes:
    """Go on where the first register is equal, or not equal, to ``operand``."""
    return _expression("cmp", _number(1, REGISTER), _number(2, operator), nest(3, attribute(NFTA_DATA_VALUE, operand)))


def lookup(name: str, *, invert: bool = False, into: int = 0) -> bytes:
    """Go on where the registers are a member of a set, or are not; ``into`` takes a map's answer."""
    parts = [text(1, name), _number(2, REGISTER)]
    if into:
        parts.append(_number(3, into))
    if invert:
        parts.append(_number(5, NFT_LOOKUP_F_INV))
    return _expression("lookup", *parts)


def verdict(code: int, chain: str = "") -> bytes:
    """NF_ACCEPT, NF_DROP, NFT_RETURN, or NFT_JUMP to a chain."""
    parts = [_number(NFTA_VERDICT_CODE, code)]
    if chain:
        parts.append(text(NFTA_VERDICT_CHAIN, chain))
    return _expression("immediate", _number(1, NFT_REG_VERDICT), nest(2, nest(NFTA_DATA_VERDICT, *parts)))


def immediate(register: int, operand: bytes) -> bytes:
    """Load a constant."""
    return _expression("immediate", _number(1, register), nest(2, attribute(NFTA_DATA_VALUE, operand)))


def reject() -> bytes:
    """Answer that it is prohibited, so that nobody waits for a timeout."""
    return _expression("reject", _number(1, NFT_REJECT_ICMPX_UNREACH), _number(2, NFT_REJECT_ICMPX_ADMIN_PROHIBITED, 1))


def dnat(family: int, address: int, port: int) -> bytes:
    """Change the destination to what two registers hold."""
    return _expression("nat", _number(1, 1), _number(2, family), _number(3, address), _number(5, port))


def masquerade() -> bytes:
    """Leave with the address of the outgoing link."""
    return _expression("masq")


# messages


def _message(kind: int, what: str, *parts: bytes, flags: int = 0) -> Message:
    return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, _INET + b"".join(parts), flags, what)


def new_table(table: str, comment: str = "") -> Message:
    """Make a table; with a comment, which ``table_comment`` reads back."""
    parts = [text(NFTA_TABLE_NAME, table)]
    if comment:
        raw = comment.encode() + b"\0"
        parts.append(attribute(NFTA_TABLE_USERDATA, bytes([0, len(raw)]) + raw))  # libnftnl's type, length, text
    return _message(NFT_MSG_NEWTABLE, f"nftables: create table {table}", *parts, flags=NLM_F_CREATE)


def delete_table(table: str) -> Message:
    """Remove a table with all it holds. ENOENT where there is none."""
    return _message(NFT_MSG_DELTABLE, f"nftables: delete table {table}", text(NFTA_TABLE_NAME, table))


def new_chain(table: str, chain: str, *, kind: str = "", hook: int = 0, priority: int = 0) -> Message:
    """Make a chain; with a kind (filter, nat) the kernel enters it at the hook, and its policy is accept."""
    parts = [text(NFTA_CHAIN_TABLE, table), text(NFTA_CHAIN_NAME, chain)]
    if kind:
        parts.append(nest(NFTA_CHAIN_HOOK, _number(NFTA_HOOK_HOOKNUM, hook), _number(NFTA_HOOK_PRIORITY, priority)))
        parts += _number(NFTA_CHAIN_POLICY, NF_ACCEPT), text(NFTA_CHAIN_TYPE, kind)
    return _message(NFT_MSG_NEWCHAIN, f"nftables: create chain {table} {chain}", *parts, flags=NLM_F_CREATE)


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Append a rule."""
    parts = (text(NFTA_RULE_TABLE, table), text(NFTA_RULE_CHAIN, chain), nest(NFTA_RULE_EXPRESSIONS, *expressions))
    return _message(NFT_MSG_NEWRULE, f"nftables: add rule {table} {chain}", *parts, flags=NLM_F_CREATE | NLM_F_APPEND)


def _type_and_size(fields: Sequence[tuple[int, int]]) -> tuple[int, int]:
    kind = size = 0
    for field_kind, field_size in fields:
        kind, size = kind << _TYPE_BITS | field_kind, size + field_size
    return kind, size


def new_set(table: str, definition: Set, identifier: int) -> Message:
    """Make a set or map; ``identifier`` is any number that no other set of the transaction has."""
    kind, size = _type_and_size(definition.key)
    parts = [
        text(NFTA_SET_TABLE, table),
        text(NFTA_SET_NAME, definition.name),
        _number(NFTA_SET_FLAGS, NFT_SET_MAP if definition.data else 0),
        _number(NFTA_SET_KEY_TYPE, kind),
        _number(NFTA_SET_KEY_LEN, size),
        _number(NFTA_SET_ID, identifier),
    ]
    if definition.data:
        kind, size = _type_and_size(definition.data)
        parts += _number(NFTA_SET_DATA_TYPE, kind), _number(NFTA_SET_DATA_LEN, size)
    if definition.key == (IFNAME,):
        parts.append(attribute(NFTA_SET_USERDATA, _HOST_ORDER))
    return _message(NFT_MSG_NEWSET, f"nftables: create set {table} {definition.name}", *parts, flags=NLM_F_CREATE)


def _elements(kind: int, table: str, name: str, elements: Iterable[Element], what: str, flags: int) -> Message:
    members = []
    for element in elements:
        parts = [nest(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, element.key))]
        if element.data:
            parts.append(nest(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, element.data)))
        members.append(nest(NFTA_LIST_ELEM, *parts))
    owner = text(NFTA_SET_ELEM_LIST_TABLE, table), text(NFTA_SET_ELEM_LIST_SET, name)
    return _message(kind, f"nftables: {what} {table} {name}", *owner, nest(3, *members), flags=flags)


def add_elements(table: str, name: str, elements: Iterable[Element], *, exclusive: bool = False) -> Message:
    """Put members into a set; exclusive: EEXIST where one is there already, otherwise that is well."""
    flags = NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)
    return _elements(NFT_MSG_NEWSETELEM, table, name, elements, "add to set", flags)


def delete_elements(table: str, name: str, elements: Iterable[Element]) -> Message:
    """Take members out of a set. ENOENT where one is not there."""
    return _elements(NFT_MSG_DELSETELEM, table, name, elements, "delete from set", 0)


def _comment(table: dict[int, bytes]) -> str:
    return as_text(table.get(NFTA_TABLE_USERDATA, b"")[2:])


class Nftables(Netlink):
    """A socket for this module's messages, in the thread's network namespace.

    The last close of one waits until the kernel has buried whatever anybody has just deleted: some 10 ms
    (nft_rcv_nl_event in net/netfilter/nf_tables_api.c). Hand it on, or close it when nobody waits.
    """

    def __init__(self, fd: int = -1) -> None:
        super().__init__(NETLINK_NETFILTER, fd)

    def commit(self, messages: Sequence[Message]) -> None:
        """All of it becomes true at once, or nothing; OSError names the first message that failed."""
        if not messages:
            return
        edge = pack(nfgenmsg(res_id=int.from_bytes(NFNL_SUBSYS_NFTABLES.to_bytes(2, "big"), byteorder)))
        begin = Message(NFNL_MSG_BATCH_BEGIN, edge, 0, "nftables: commit")
        end = Message(NFNL_MSG_BATCH_END, edge, 0, "nftables: commit")
        self.request([begin, *messages, end], acknowledge=-2)

    def table_comment(self, table: str) -> str | None:
        """The comment that a table was made with, None where there is no such table."""
        question = _message(NFT_MSG_GETTABLE, f"nftables: find table {table}", text(NFTA_TABLE_NAME, table))
        body = self.get(question)
        if body is None:
            return None
        return _comment(attributes(body[_GENERAL:]))

    def tables(self) -> list[tuple[str, str]]:
        """Every inet table: (name, comment)."""
        question = _message(NFT_MSG_GETTABLE, "nftables: list tables")
        found = (attributes(body[_GENERAL:]) for _, body in self.dump(question))
        return [(as_text(parts[NFTA_TABLE_NAME]), _comment(parts)) for parts in found]

    def forward_drops(self) -> list[str]:
        """Base chains of anybody at the forward hook whose policy is drop: "family table chain"."""
        question = Message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, pack(nfgenmsg()), 0, "nftables: list chains")
        found = []
        for _, body in self.dump(question):
            parts = attributes(body[_GENERAL:])
            hook = attributes(parts.get(NFTA_CHAIN_HOOK, b"")).get(NFTA_HOOK_HOOKNUM, b"")
            family = _FAMILIES.get(body[0])
            dropping = parts.get(NFTA_CHAIN_POLICY) == bytes(4)
            if family and hook == FORWARD.to_bytes(4, "big") and dropping:
                names = as_text(parts[NFTA_CHAIN_TABLE]), as_text(parts[NFTA_CHAIN_NAME])
                found.append(" ".join((family, *names)))
        return found

    def elements(self, table: str, name: str) -> list[Element]:
        """The members of a set. FileNotFoundError where there is no such set or table."""
        owner = text(NFTA_SET_ELEM_LIST_TABLE, table), text(NFTA_SET_ELEM_LIST_SET, name)
        found = []
        for _, body in self.dump(_message(NFT_MSG_GETSETELEM, f"nftables: list set {table} {name}", *owner)):
            members = attributes(body[_GENERAL:]).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
            for _, member in each_attribute(members):
                parts = attributes(member)
                key, data = (
                    attributes(parts.get(kind, b"")).get(NFTA_DATA_VALUE, b"")
                    for kind in (NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA)
                )
                found.append(Element(key, data))
        return found
