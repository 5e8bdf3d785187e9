"""DNS messages, as far as a responder for a network's names needs them; no I/O. RFC 1035, RFC 3596.

Queries come from workloads and are hostile: one question, names without compression, every length checked
before it is believed. What is not ours to answer is passed on unread but for its identifier and question.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.values import value

A, PTR, AAAA, ANY = 1, 12, 28, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NOTIMP, REFUSED = 0, 1, 2, 4, 5

_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_HEADER = 12
_NAME_MAX = 255  # RFC 1035, 2.3.4; labels have 63
_LABEL_MAX = 63
# Without EDNS a UDP answer is at most this long; ours never promise more.
UDP_MAX = 512
TTL = 600  # Docker's; long enough to spare questions, short enough for a workload that comes back elsewhere


@value
class Question:
    """What a query asks. The name is in lower case, without the final dot; ``raw`` is as it was sent."""

    id: int
    flags: int
    name: str
    type: int
    klass: int
    raw: bytes

    @property
    def key(self) -> bytes:
        """The question in a form in which an answer's may be compared with it: case may have been changed."""
        return self.raw.lower()


def parse(message: bytes) -> Question:
    """The question of a query or of an answer. Invalid unless there is exactly one and it is well formed."""
    if len(message) < _HEADER:
        raise Invalid(f"a DNS message of {len(message)} bytes")
    id, flags, questions = (int.from_bytes(message[start : start + 2], "big") for start in (0, 2, 4))
    if questions != 1:
        raise Invalid(f"a DNS message with {questions} questions")
    name, end = _name(message, _HEADER)
    if end + 4 > len(message):
        raise Invalid("a DNS question without type and class")
    kind, klass = int.from_bytes(message[end : end + 2], "big"), int.from_bytes(message[end + 2 : end + 4], "big")
    return Question(id, flags, name, kind, klass, message[_HEADER : end + 4])


def _name(message: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(message):
            raise Invalid("a DNS name that does not end")
        length = message[offset]
        offset += 1
        if length == 0:
            break
        if length > _LABEL_MAX:  # the two high bits say: compressed, which a question has no reason to be
            raise Invalid(f"a DNS label of {length} bytes in a question")
        if offset + length - start >= _NAME_MAX or offset + length > len(message):
            raise Invalid("a DNS name that is too long")
        labels.append(message[offset : offset + length].decode("latin-1").lower())
        offset += length
    return ".".join(labels), offset


def is_query(question: Question) -> bool:
    """A question of the standard kind, not an answer, a notification or an update."""
    return not question.flags & (_QR | 0x7800)


def encode_name(name: str) -> bytes:
    """A name as labels. Invalid where one is empty or too long, or the name is not latin-1."""
    encoded = b""
    try:
        for label in name.rstrip(".").split("."):
            raw = label.encode("latin-1")
            if not 0 < len(raw) <= _LABEL_MAX:
                raise Invalid(f"{name!r} is not a DNS name: a label has {len(raw)} bytes")
            encoded += bytes([len(raw)]) + raw
    except UnicodeEncodeError as error:
        raise Invalid(f"{name!r} is not a DNS name: {error.reason}") from error
    if len(encoded) >= _NAME_MAX:
        raise Invalid(f"{name!r} is not a DNS name: it has {len(encoded)} bytes")
    return encoded + b"\0"


def answer(question: Question, records: list[tuple[int, bytes]], code: int = NOERROR, *, limit: int = UDP_MAX) -> bytes:
    """The message with these (type, data) records for the question's name, or with an error code.

    Records that do not fit into ``limit`` are left out, and the answer says that it is cut.
    """
    flags = _QR | _AA | _RA | question.flags & _RD | code
    body, count = question.raw, 0
    for kind, data in records:
        # 0xC00C: the question's name, which stands right behind the header.
        record = b"\xc0\x0c" + b"".join(item.to_bytes(2, "big") for item in (kind, IN))
        record += TTL.to_bytes(4, "big") + len(data).to_bytes(2, "big") + data
        if _HEADER + len(body) + len(record) > limit:
            flags |= _TC
            break
        body += record
        count += 1
    header = (question.id, flags, 1, count, 0, 0)
    return b"".join(item.to_bytes(2, "big") for item in header) + body


def malformed(message: bytes) -> bytes:
    """What to say to a query that cannot be read; nothing where not even its identifier can, or it is an answer."""
    if len(message) < _HEADER or message[2] & 0x80:
        return b""
    flags = _QR | _RA | FORMERR
    return message[:2] + flags.to_bytes(2, "big") + bytes(8)


def fits(message: bytes, id: int, asked: Question) -> bool:
    """Whether it answers what was asked: by the same identifier, the same question."""
    try:
        answered = parse(message)
    except Invalid:
        return False
    return answered.id == id and answered.key == asked.key and bool(answered.flags & _QR)


def with_id(message: bytes, id: int) -> bytes:
    """The same message under another identifier."""
    return id.to_bytes(2, "big") + message[2:]


class Directory:
    """Names and addresses of one workload's neighbours; names in any case, an address may have several."""

    def __init__(self) -> None:
        self._addresses: dict[str, list[bytes]] = {}
        self._names: dict[str, str] = {}

    def add(self, names: list[str], addresses: list[bytes]) -> None:
        """One member. The first name is the one that its addresses are said to be of."""
        for name in names:
            known = self._addresses.setdefault(name.lower(), [])
            known += (address for address in addresses if address not in known)
        for address in addresses:
            self._names.setdefault(reverse_name(address), names[0])

    def find(self, question: Question) -> list[tuple[int, bytes]] | None:
        """The records for a question, perhaps none of its type; None where the name is not ours."""
        if question.klass not in (IN, ANY):
            return None
        if question.type == PTR:
            name = self._names.get(question.name)
            return None if name is None else [(PTR, encode_name(name))]
        addresses = self._addresses.get(question.name)
        if addresses is None:
            return None
        turn = question.id % len(addresses) if addresses else 0  # so that those of one name share the work
        kinds = ((A if len(address) == 4 else AAAA, address) for address in addresses[turn:] + addresses[:turn])
        return [(kind, address) for kind, address in kinds if question.type in (kind, ANY)]


def reverse_name(address: bytes) -> str:
    """The name under which an address's own name is asked for: 2.0.17.172.in-addr.arpa."""
    if len(address) == 4:
        return ".".join(str(byte) for byte in reversed(address)) + ".in-addr.arpa"
    return ".".join(reversed(address.hex())) + ".ip6.arpa"
