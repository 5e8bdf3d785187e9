"""Packets of gdb's remote serial protocol. GDB manual, appendix E, "Overview".

    $text#cs    cs: the sum of the bytes between, modulo 256, in two digits; # $ } * are sent as } and the byte ^ 0x20
    + -         taken, or sent again please; not used once QStartNoAckMode is agreed
    0x03        an interrupt: stop

No I/O: bytes in, events out.
"""

from __future__ import annotations

from collections import deque

from mamushka.errors import Invalid

PACKET_MAX = 0x4000  # what we tell gdb (PacketSize); all of a packet, escapes included

INTERRUPT = b"\x03"  # the event for it; no packet looks so, for they are told with their $

_ESCAPED = b"#$}*"


class Packets:
    """One side of a conversation. What is to be written is gathered in ``out``."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.acknowledged = True  # each packet is answered with + or -
        self._buffer = bytearray()
        self._last = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The packets in it, each as ``$`` and its text, and INTERRUPT. Invalid where a packet is too long."""
        self._buffer += data
        found: deque[bytes] = deque()
        while self._buffer and (event := self._next()) is not None:
            if event:
                found.append(event)
        if len(self._buffer) > PACKET_MAX + 4:
            raise Invalid(f"a packet of more than {PACKET_MAX} bytes")
        return list(found)

    def _next(self) -> bytes | None:
        """One event; empty for what says nothing, None where more must come."""
        first = self._buffer[0]
        if first != ord("$"):
            del self._buffer[0]
            if first == ord("-"):
                self.out += self._last
            return INTERRUPT if first == INTERRUPT[0] else b""
        end = self._buffer.find(b"#")
        if end < 0 or len(self._buffer) < end + 3:
            return None
        text, digits = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
        del self._buffer[: end + 3]
        if self.acknowledged:
            right = digits.lower() == checksum(text)
            self.out += b"+" if right else b"-"
            if not right:
                return b""
        return b"$" + unescape(text)

    def send(self, text: bytes) -> None:
        """Append a packet to what is to be written."""
        body = escape(text)
        self._last = b"$" + body + b"#" + checksum(body)
        self.out += self._last


def checksum(body: bytes) -> bytes:
    """Two digits for what stands between $ and #."""
    return b"%02x" % (sum(body) & 0xFF)


def escape(text: bytes) -> bytes:
    """Without the bytes that mean something by themselves."""
    if not any(byte in _ESCAPED for byte in text):
        return text
    return b"".join(bytes((0x7D, byte ^ 0x20)) if byte in _ESCAPED else bytes((byte,)) for byte in text)


def unescape(body: bytes) -> bytes:
    """What ``escape`` was given; one at the end that nothing follows is passed over."""
    if b"}" not in body:
        return body
    text, escaped = bytearray(), False
    for byte in body:
        if escaped:
            text.append(byte ^ 0x20)
            escaped = False
        elif byte == 0x7D:
            escaped = True
        else:
            text.append(byte)
    return bytes(text)


def number(digits: bytes) -> int:
    """A number in hexadecimal, of 16 digits at most. Invalid where it is none."""
    if not 0 < len(digits) <= 16 or digits.strip(b"0123456789abcdefABCDEF"):
        raise Invalid(f"not a number: {digits[:20]!r}")
    return int(digits, 16)


def octets(digits: bytes) -> bytes:
    """Bytes from their digits. Invalid where they are none."""
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise Invalid("not pairs of digits") from error
