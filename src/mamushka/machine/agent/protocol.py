"""The guest protocol without I/O: values in, bytes out; bytes in, events out. docs/reference/guest-protocol.md.

A frame is a header (size of the body, kind, zero, id; little-endian) and fields; a field is a key, a size and a
payload, which is a number of eight bytes, text, bytes or again fields. The guest is hostile: whatever it sends is
parsed or raises GuestFault, and the same in pieces as at once.
"""

from __future__ import annotations

import struct

from mamushka.errors import GuestFault
from mamushka.machine.agent import words
from mamushka.machine.agent.words import BYTES, GROUPS, HEADER_SIZE, TEXTS
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the guest's frames the largest is a list of processes; it keeps to this (REPLY_MAX) itself.
FRAME_MAX = 1 << 20
# What the guest takes (guest.h, FRAME_MAX): arguments and environment of one execve.
REQUEST_MAX = 4 << 20
# An error's path is cut to 512 bytes by the guest; what is longer was not written by it.
TEXT_MAX = 1 << 16
DEPTH_MAX = 4

_HEADER = struct.Struct("<IHHI")
_FIELD = struct.Struct("<HI")
_MASK = (1 << 64) - 1

Field = tuple[int, bytes]


def number(key: int, value: int) -> bytes:
    """A field that is a number; a negative one as two's complement."""
    return _FIELD.pack(key, 8) + (value & _MASK).to_bytes(8, "little")


def text(key: int, value: str) -> bytes:
    """A field that is text: a path or argument, whatever its bytes."""
    return raw(key, value.encode("utf-8", "surrogateescape"))


def raw(key: int, value: bytes) -> bytes:
    """A field that is bytes."""
    return _FIELD.pack(key, len(value)) + value


def group(key: int, *fields: bytes) -> bytes:
    """A field of fields."""
    return raw(key, b"".join(fields))


def frame(kind: int, id: int, *fields: bytes) -> bytes:
    """A whole frame, for the host to send."""
    body = b"".join(fields)
    if len(body) > REQUEST_MAX:
        from mamushka.errors import Invalid

        raise Invalid(f"arguments and environment are {len(body)} bytes together, the guest takes {REQUEST_MAX}",
                      hint="pass long texts in a file")  # fmt: skip
    return _HEADER.pack(len(body), kind, 0, id) + body


class Fields:
    """The fields of a frame or of a group, checked once: sizes, types and depth hold, texts have no NUL."""

    __slots__ = ("_items",)

    def __init__(self, body: bytes, depth: int = 0) -> None:
        self._items = tuple(_split(body))
        for key, payload in self._items:
            _check(key, payload, depth)

    def __iter__(self) -> Iterator[Field]:
        return iter(self._items)

    def get(self, key: int) -> bytes | None:
        """The first such field's payload."""
        return next((payload for found, payload in self._items if found == key), None)

    def number(self, key: int, otherwise: int = 0) -> int:
        """As an unsigned number of 64 bits."""
        found = self.get(key)
        return otherwise if found is None else int.from_bytes(found, "little")

    def text(self, key: int) -> str:
        """Empty where it is absent."""
        return (self.get(key) or b"").decode("utf-8", "surrogateescape")

    def groups(self, key: int) -> Iterator[Fields]:
        """All such fields, each as fields."""
        return (Fields(payload, 1) for found, payload in self._items if found == key)


def _split(body: bytes) -> Iterator[Field]:
    at, end = 0, len(body)
    while at < end:
        if end - at < _FIELD.size:
            raise GuestFault(f"the guest's agent sent a field of {end - at} bytes")
        key, size = _FIELD.unpack_from(body, at)
        at += _FIELD.size
        if size > end - at:
            raise GuestFault(f"the guest's agent sent a field of {size} bytes where {end - at} are left")
        yield key, body[at : at + size]
        at += size


def _check(key: int, payload: bytes, depth: int) -> None:
    if key in GROUPS:
        if depth >= DEPTH_MAX:
            raise GuestFault(f"the guest's agent sent fields more than {DEPTH_MAX} deep")
        Fields(payload, depth + 1)
    elif key in TEXTS:
        if len(payload) > TEXT_MAX or b"\0" in payload:
            raise GuestFault(f"the guest's agent sent a text of {len(payload)} bytes that is none")
    elif key == words.K_TOKEN:
        if len(payload) != words.TOKEN_SIZE:
            raise GuestFault(f"the guest's agent sent a token of {len(payload)} bytes")
    elif key not in BYTES and len(payload) != 8:
        raise GuestFault(f"the guest's agent sent a number of {len(payload)} bytes")


@value
class Hello:
    """The guest is there. ``token``: it has been here before, and this proves that it is the same."""

    version: int
    features: int
    release: str
    machine: str
    token: bytes


@value
class Answer:
    """A request succeeded."""

    id: int
    fields: Fields


@value
class Failure:
    """A request failed; ``kind`` is one of words.FAILED …, ``number`` an errno."""

    id: int
    kind: int
    number: int
    operation: str
    path: str


@value
class Exited:
    """A process ended and all that it wrote has been sent.

    ``open``: streams that others hold open still, and how many bytes their connections have carried till then.
    """

    process: int
    code: int
    signal: int
    oom_killed: bool
    open: tuple[tuple[int, int], ...]


@value
class Log:
    """The agent could not do what nobody asked for."""

    text: str


@value
class Opened:
    """The first frame of a connection that is a stream."""

    token: bytes
    process: int
    stream: int


Event = Hello | Answer | Failure | Exited | Log | Opened

# errno has 4095 values, an exit status 8 bits, signals are up to 64; what is outside was not told by a kernel.
_ERRNO_MAX, _CODE_MAX, _SIGNAL_MAX = 4095, 255, 64


def _bounded(fields: Fields, key: int, most: int, what: str) -> int:
    found = fields.number(key)
    if found > most:
        raise GuestFault(f"the guest's agent told {what} {found}; the most is {most}")
    return found


def event_of(kind: int, id: int, body: bytes) -> Event:
    """What a frame of the guest's says. GuestFault for one that it has no business to send."""
    fields = Fields(body)
    if kind == words.REPLY:
        return Answer(id, fields)
    if kind == words.ERROR:
        number = _bounded(fields, words.K_ERRNO, _ERRNO_MAX, "the error")
        return Failure(
            id, fields.number(words.K_KIND), number, fields.text(words.K_OPERATION), fields.text(words.K_PATH)
        )
    if kind == words.EXITED:
        return Exited(
            fields.number(words.K_PROCESS),
            _bounded(fields, words.K_CODE, _CODE_MAX, "the exit status"),
            _bounded(fields, words.K_SIGNAL, _SIGNAL_MAX, "the signal"),
            bool(fields.number(words.K_OOM)),
            tuple((item.number(words.K_STREAM), item.number(words.K_SIZE)) for item in fields.groups(words.K_OPEN)),
        )
    if kind == words.HELLO:
        return Hello(
            fields.number(words.K_VERSION), fields.number(words.K_FEATURES), fields.text(words.K_RELEASE),
            fields.text(words.K_MACHINE), fields.get(words.K_TOKEN) or b"",
        )  # fmt: skip
    if kind == words.LOG:
        return Log(fields.text(words.K_TEXT))
    if kind == words.STREAM:
        return Opened(fields.get(words.K_TOKEN) or b"", fields.number(words.K_PROCESS), fields.number(words.K_STREAM))
    raise GuestFault(f"the guest's agent sent a frame of the unknown kind {kind}")


class Parser:
    """Bytes of one connection, in any pieces, to events. After a GuestFault it is of no more use."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes | bytearray | memoryview, *, most: int = -1) -> list[Event]:
        """The events that are whole by now; with ``most``, so many of them: what follows stays in ``rest``."""
        self._left += data
        events: list[Event] = []
        while len(events) != most and (event := self._next()) is not None:
            events.append(event)
        return events

    @property
    def rest(self) -> bytes:
        """What belongs to no whole frame."""
        return bytes(self._left)

    def _next(self) -> Event | None:
        if len(self._left) < HEADER_SIZE:
            return None
        size, kind, zero, id = _HEADER.unpack_from(self._left)
        if size > FRAME_MAX or zero:
            raise GuestFault(f"the guest's agent sent a frame of {size} bytes, the most is {FRAME_MAX}")
        end = HEADER_SIZE + size
        if len(self._left) < end:
            return None
        body = bytes(self._left[HEADER_SIZE:end])
        del self._left[:end]
        return event_of(kind, id, body)
