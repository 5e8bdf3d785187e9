"""D-Bus messages as bytes: what systemd is asked, and what it answers. D-Bus Specification, 0.38.

    body(signature, values)   values by their signature, little-endian
    Message                   encode makes bytes of it, decode takes one from the front of a buffer
    AUTHENTICATE, accepted    the words before the first message

Nothing here does any I/O. Values: integers, bool, float, str; ``ay`` is bytes, another array a tuple, ``a{…}`` a dict,
a struct a tuple, a variant a ``Variant``, which knows its own signature.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    Order: TypeAlias = Literal["little", "big"]

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4

# Who one is, the server takes from the socket itself: so it is right in a user namespace, too. No identity is claimed
# (DATA), and nothing has to be waited for in between.
AUTHENTICATE = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"

# The specification allows 128 MiB. systemd's answers are some hundred bytes; a property with a list some thousand.
_MESSAGE_MAX = 1 << 20
_DEPTH_MAX = 32  # of arrays, and of structs, in a signature; here of both
_SIGNATURE_MAX = 255
_HEADER_MIN = 16
# kind: (size, signed, what it is aligned to is its size)
_INTEGERS = {"y": (1, False), "n": (2, True), "q": (2, False), "i": (4, True), "u": (4, False), "x": (8, True),
             "t": (8, False), "h": (4, False)}  # fmt: skip
_ALIGNMENTS = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}  # else 4
_PATH, _INTERFACE, _MEMBER, _ERROR, _REPLY, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)


@value
class Variant:
    """A value that brings its type along."""

    signature: str
    content: Any


@value
class Message:
    """One message; which fields it needs depends on its kind."""

    kind: int
    serial: int
    path: str = ""
    interface: str = ""
    member: str = ""
    destination: str = ""
    signature: str = ""
    body: tuple[Any, ...] = ()
    reply_to: int = 0
    error: str = ""


def accepted(answer: bytes) -> bool:
    """Whether the server has let us in; False while its answer is not whole. Invalid when it has not."""
    lines = answer.split(b"\r\n")
    for line in lines[:-1]:
        if line[:3] == b"OK ":
            return True
        if line[:4] != b"DATA":
            raise Invalid(f"the bus does not accept us: {line[:100].decode(errors='replace')}")
    if len(answer) > _SIGNATURE_MAX * 4:
        raise Invalid("the bus answers at length, and not what it is asked")
    return False


# To bytes


def encode(message: Message) -> bytes:
    """The message, little-endian."""
    content = body(message.signature, message.body)
    fields = [
        (code, Variant(signature, text))
        for code, signature, text in (
            (_PATH, "o", message.path),
            (_INTERFACE, "s", message.interface),
            (_MEMBER, "s", message.member),
            (_ERROR, "s", message.error),
            (_REPLY, "u", message.reply_to),
            (_DESTINATION, "s", message.destination),
            (_SIGNATURE, "g", message.signature),
        )
        if text
    ]
    head = body("yyyyuua(yv)", (ord("l"), message.kind, 0, 1, len(content), message.serial, fields))
    return head + bytes(-len(head) % 8) + content


def body(signature: str, values: tuple[Any, ...]) -> bytes:
    """Values one after the other, each aligned."""
    out = bytearray()
    for kind, item in zip(split(signature), values, strict=True):
        _put(out, kind, item)
    return bytes(out)


def _put(out: bytearray, kind: str, item: Any) -> None:
    letter = kind[0]
    out += bytes(-len(out) % _ALIGNMENTS.get(letter, 4))
    if letter in _INTEGERS:
        size, signed = _INTEGERS[letter]
        out += int(item).to_bytes(size, "little", signed=signed)
    elif letter == "b":
        out += int(bool(item)).to_bytes(4, "little")
    elif letter in "so":
        raw = item.encode()
        out += len(raw).to_bytes(4, "little") + raw + b"\0"
    elif letter == "g":
        out += bytes((len(item),)) + item.encode() + b"\0"
    elif letter == "v":
        _put(out, "g", item.signature)
        _put(out, item.signature, item.content)
    elif letter == "d":
        from _struct import pack

        out += pack("<d", item)
    elif letter == "a":
        _put_array(out, kind[1:], item)
    else:
        for part, inner in zip(split(kind[1:-1]), item, strict=True):
            _put(out, part, inner)


def _put_array(out: bytearray, kind: str, items: Any) -> None:
    at = len(out)
    out += bytes(4)
    out += bytes(-len(out) % _ALIGNMENTS.get(kind[0], 4))  # not counted, and there even if the array is empty
    start = len(out)
    if kind == "y":
        out += bytes(items)
    else:
        for item in items.items() if kind[0] == "{" else items:
            _put(out, kind, item)
    out[at : at + 4] = (len(out) - start).to_bytes(4, "little")


def split(signature: str) -> list[str]:
    """The complete types of a signature, one by one. Invalid when it is none."""
    found = []
    at = 0
    while at < len(signature):
        end = _end(signature, at, 0)
        found.append(signature[at:end])
        at = end
    return found


def _end(signature: str, at: int, depth: int) -> int:
    """Where the complete type that begins here ends."""
    letter = signature[at : at + 1]
    if depth > _DEPTH_MAX or len(signature) > _SIGNATURE_MAX:
        raise Invalid("a D-Bus signature is too deep or too long")
    if letter in _INTEGERS or (letter and letter in "bdsogv"):
        return at + 1
    if letter == "a":
        if signature[at + 1 : at + 2] == "{":
            key = _end(signature, at + 2, depth + 2)
            end = _end(signature, key, depth + 2)
            if key != at + 3 or signature[at + 2] in "av(" or signature[end : end + 1] != "}":
                raise Invalid(f"the D-Bus signature {signature!r} is not valid")
            return end + 1
        return _end(signature, at + 1, depth + 1)
    if letter == "(":
        end = at + 1
        while signature[end : end + 1] != ")":
            end = _end(signature, end, depth + 1)
        if end > at + 1:
            return end + 1
    raise Invalid(f"the D-Bus signature {signature!r} is not valid")


# From bytes


def decode(buffer: bytes) -> tuple[Message | None, int]:
    """(the first message, how many bytes it is); (None, 0) while it is not whole. Invalid for what is none."""
    if len(buffer) < _HEADER_MIN:
        return None, 0
    if buffer[:1] not in (b"l", b"B") or buffer[3] != 1:
        raise Invalid("what came over the bus is no D-Bus message")
    order: Order = "little" if buffer[:1] == b"l" else "big"
    length = int.from_bytes(buffer[4:8], order)
    fields = int.from_bytes(buffer[12:16], order)
    start = _HEADER_MIN + fields + (-fields % 8)
    if length + start > _MESSAGE_MAX:
        raise Invalid(f"a D-Bus message of {length + start} bytes is longer than any that is expected")
    if len(buffer) < start + length:
        return None, 0
    try:
        head = _Reader(buffer[: _HEADER_MIN + fields], order).take("yyyyuua(yv)")
        known = {code: variant.content for code, variant in head[6] if code <= _SIGNATURE}
        reader = _Reader(buffer[start : start + length], order)
        content = reader.take(str(known.get(_SIGNATURE, "")))
        texts = {name: str(known.get(code, "")) for name, code in _TEXTS}
        reply = int(known.get(_REPLY, 0))
    except (IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise Invalid(f"a D-Bus message is damaged: {error}") from None
    return Message(head[1], head[5], body=content, reply_to=reply, **texts), start + length


_TEXTS = (("path", _PATH), ("interface", _INTERFACE), ("member", _MEMBER), ("error", _ERROR),
          ("destination", _DESTINATION), ("signature", _SIGNATURE))  # fmt: skip


class _Reader:
    """Values from bytes; ValueError or IndexError where there are too few."""

    def __init__(self, raw: bytes, order: Order) -> None:
        self.raw, self.order, self.at = raw, order, 0

    def take(self, signature: str, depth: int = 0) -> tuple[Any, ...]:
        return tuple([self._value(kind, depth) for kind in split(signature)])

    def _value(self, kind: str, depth: int) -> Any:
        letter = kind[0]
        if depth > 2 * _DEPTH_MAX:  # variants nest without a signature's help
            raise ValueError("values are nested too deeply")
        self._align(_ALIGNMENTS.get(letter, 4))
        if letter in _INTEGERS:
            size, signed = _INTEGERS[letter]
            return int.from_bytes(self._bytes(size), self.order, signed=signed)
        if letter == "b":
            return bool(int.from_bytes(self._bytes(4), self.order))
        if letter in "so":
            return self._text(int.from_bytes(self._bytes(4), self.order))
        if letter == "g":
            return self._text(self._bytes(1)[0])
        if letter == "v":
            (inner,) = split(self._text(self._bytes(1)[0]))
            return Variant(inner, self._value(inner, depth + 1))
        if letter == "d":
            from _struct import unpack

            return unpack("<d" if self.order == "little" else ">d", self._bytes(8))[0]
        if letter == "a":
            return self._array(kind[1:], depth)
        return tuple([self._value(part, depth + 1) for part in split(kind[1:-1])])

    def _array(self, kind: str, depth: int) -> Any:
        length = int.from_bytes(self._bytes(4), self.order)
        self._align(_ALIGNMENTS.get(kind[0], 4))
        end = self.at + length
        if end > len(self.raw):
            raise ValueError("an array is longer than its message")
        if kind == "y":
            return self._bytes(length)
        items = []
        while self.at < end:
            items.append(self._value(kind, depth + 1))
        if self.at != end:
            raise ValueError("an array's last item is longer than the array")
        return dict(items) if kind[0] == "{" else tuple(items)

    def _text(self, length: int) -> str:
        text = self._bytes(length).decode()
        if self._bytes(1) != b"\0" or "\0" in text:
            raise ValueError("a string does not end where it should")
        return text

    def _align(self, size: int) -> None:
        self.at += -self.at % size

    def _bytes(self, count: int) -> bytes:
        found = self.raw[self.at : self.at + count]
        if len(found) != count:
            raise ValueError("it ends in the middle of a value")
        self.at += count
        return found
