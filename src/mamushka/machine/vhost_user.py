"""vhost-user: how a machine hands a device's queues to another process; the front end's half, as bytes, without I/O.

The front end (us) tells the back end over a Unix socket where the guest's memory is (descriptors of the files that
back it), where each ring lies in it, and two eventfds for each ring: ``kick``, written when the driver notifies, and
``call``, written to interrupt it. After that the back end works on the rings by itself; we are asked nothing more.

    GET_FEATURES, SET_OWNER, [GET|SET]_PROTOCOL_FEATURES             once
    SET_FEATURES, SET_MEM_TABLE                                      when the driver is ready
    SET_VRING_NUM, _BASE, _ADDR, _CALL, _KICK, _ENABLE               for each ring
    GET_VRING_BASE                                                   for each ring, which stops it

Every message is a header (request, flags, size of the payload) and a payload. Requests with an answer get it under
their own number; for the others we ask for a word of success where the back end knows to give one (REPLY_ACK).

What comes from the back end is not trusted, since the guest writes into its memory: a header of another request, a size
that does not fit or a refusal is Invalid. Addresses of rings and memory are the guest's own: which address a back end
translates is for us to say, and so it never learns where anything lies in this process.

QEMU, docs/interop/vhost-user.rst. Numbers are in the host's byte order, which is little endian wherever this runs.
"""

from __future__ import annotations

from struct import Struct

from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
GET_QUEUE_NUM, SET_VRING_ENABLE = 17, 18

F_PROTOCOL_FEATURES = 30  # among the features: the back end has protocol features
PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK = 0, 3

VERSION, REPLY, NEED_REPLY = 1, 4, 8  # flags of a header; the version is its two lowest bits
HEADER = 12
REGIONS_MAX = 8  # "a maximum of 8 memory regions", without CONFIGURE_MEM_SLOTS
# A ring index and a descriptor share the 64 bits of SET_VRING_KICK and _CALL: the lowest eight are the index.
_RING_MAX = 255

_HEADER = Struct("<III")
_U64 = Struct("<Q")
_STATE = Struct("<II")
_ADDRESSES = Struct("<IIQQQQ")
_TABLE = Struct("<II")
_REGION = Struct("<QQQQ")


@value
class Message:
    """One request. ``answer`` is the size of the answer's payload, in bytes; zero where none is due.

    ``fds`` go with it as ancillary data; they stay the sender's.
    """

    request: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    answer: int = 0


@value
class Shared:
    """Guest memory that the back end maps: ``length`` bytes of the file ``fd`` from ``offset``, seen at ``start``."""

    start: int
    length: int
    offset: int
    fd: int


@value
class Ring:
    """One queue: descriptors, guest addresses of its three parts, the next entry to be taken, and its eventfds."""

    index: int
    depth: int
    table: int
    available: int
    used: int
    base: int
    kick: int
    call: int


# To the back end


def encode(message: Message, *, acknowledge: bool = False) -> bytes:
    """A message's bytes. ``acknowledge`` asks for a word of success, once REPLY_ACK has been agreed on."""
    flags = VERSION | (NEED_REPLY if acknowledge and not message.answer else 0)
    return _HEADER.pack(message.request, flags, len(message.payload)) + message.payload


def question(request: int) -> Message:
    """A request without a payload whose answer is a 64-bit number."""
    return Message(request, answer=_U64.size)


def statement(request: int, number: int) -> Message:
    """A request whose payload is a 64-bit number."""
    return Message(request, _U64.pack(number))


def memory_table(regions: Sequence[Shared]) -> Message:
    """Where the guest's memory is. Invalid where it has more parts than the protocol can tell."""
    if not 0 < len(regions) <= REGIONS_MAX:
        raise Invalid(f"memory of {len(regions)} parts cannot be shared with a back end: at most {REGIONS_MAX}")
    parts = [_TABLE.pack(len(regions), 0)]
    parts += [_REGION.pack(region.start, region.length, region.start, region.offset) for region in regions]
    return Message(SET_MEM_TABLE, b"".join(parts), tuple(region.fd for region in regions))


def ring_messages(ring: Ring) -> list[Message]:
    """All that starts one ring; the kick comes last but one, since it is what starts it."""
    index = ring.index
    assert 0 <= index <= _RING_MAX, index
    addresses = _ADDRESSES.pack(index, 0, ring.table, ring.used, ring.available, 0)
    return [
        Message(SET_VRING_NUM, _STATE.pack(index, ring.depth)),
        Message(SET_VRING_BASE, _STATE.pack(index, ring.base)),
        Message(SET_VRING_ADDR, addresses),
        Message(SET_VRING_CALL, _U64.pack(index), (ring.call,)),
        Message(SET_VRING_KICK, _U64.pack(index), (ring.kick,)),
        Message(SET_VRING_ENABLE, _STATE.pack(index, 1)),
    ]


def stop_ring(index: int) -> Message:
    """Stop a ring; the answer tells the next entry that would have been taken (``ring_base``)."""
    return Message(GET_VRING_BASE, _STATE.pack(index, 0), answer=_STATE.size)


# From the back end


def check_header(data: bytes, message: Message) -> None:
    """Whether this is the header of the answer to a message: Invalid if not."""
    if len(data) != HEADER:
        raise Invalid(f"the back end's answer ends after {len(data)} of {HEADER} bytes")
    request, flags, size = _HEADER.unpack(data)
    expected = message.answer or _U64.size
    if request != message.request or flags & 3 != VERSION or not flags & REPLY or size != expected:
        raise Invalid(
            f"the back end answered request {message.request} with request {request}, flags {flags:#x}, {size} bytes"
        )


def number(payload: bytes) -> int:
    """The 64-bit number of an answer."""
    if len(payload) != _U64.size:
        raise Invalid(f"the back end answered with {len(payload)} bytes instead of {_U64.size}")
    found: int = _U64.unpack(payload)[0]
    return found


def check_success(payload: bytes, message: Message) -> None:
    """Whether a message was acknowledged: zero is success."""
    if number(payload):
        raise Invalid(f"the back end refused request {message.request}: {number(payload)}")


def ring_base(payload: bytes, index: int) -> int:
    """The answer to ``stop_ring``: a free-running 16-bit counter of entries."""
    if len(payload) != _STATE.size:
        raise Invalid(f"the back end answered with {len(payload)} bytes instead of {_STATE.size}")
    told, base = _STATE.unpack(payload)
    if told != index or base > 0xFFFF:
        raise Invalid(f"the back end stopped ring {told} at {base} instead of ring {index}")
    return int(base)


def agree(offered: int, wanted: int) -> int:
    """Features for the back end: those of the driver, which it must all have, and that it has protocol features."""
    missing = wanted & ~offered
    if missing:
        raise Invalid(f"the back end lacks features that the driver was offered: {missing:#x}")
    return wanted | offered & 1 << F_PROTOCOL_FEATURES
