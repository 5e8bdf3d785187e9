"""Netlink: requests to the kernel as messages with attributes, sent in batches, answered in one pass.

A message is a header, a fixed struct of its family, and attributes: length, type and payload, which may be
attributes again (Documentation/userspace-api/netlink/intro.rst). The kernel works through a batch in order
and has answered when send(2) returns. A failed message does not stop the ones after it (only nftables has
transactions), so a batch holds what can be undone as a whole.
"""

from __future__ import annotations

import _socket
import errno
import os
from sys import byteorder

from mamushka.linux.abi import pack, s32, sizeof, struct, u16, u32, unpack
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

# The kernel hands out at most 32 KiB at once (netlink_dump in net/netlink/af_netlink.c).
_RECEIVE = 65536
# Every link, route and rule of a busy host is a few megabytes; more than this is not a host's state.
_DUMP_MAX = 256 << 20
# A dump during which the table changed is repeated; on a host that never rests the last one must do.
_DUMP_ATTEMPTS = 5


@struct
class nlmsghdr:
    """Before every message. include/uapi/linux/netlink.h."""

    nlmsg_len: u32 = 0
    nlmsg_type: u16 = 0
    nlmsg_flags: u16 = 0
    nlmsg_seq: u32 = 0
    nlmsg_pid: u32 = 0


_HEADER = sizeof(nlmsghdr)
_ERROR = sizeof(s32) + _HEADER


@value
class Message:
    """One request: its type, the family's struct and attributes, flags, and words for its error."""

    type: int
    body: bytes
    flags: int = 0
    what: str = ""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to netlink's four bytes."""
    length = len(payload) + 4
    return length.to_bytes(2, byteorder) + kind.to_bytes(2, byteorder) + payload + bytes(-length % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def number(kind: int, item: int, size: int = 4) -> bytes:
    """An attribute that is an integer in this machine's byte order."""
    return attribute(kind, item.to_bytes(size, byteorder))


def text(kind: int, item: str) -> bytes:
    """An attribute that is a string with its final zero."""
    return attribute(kind, item.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of a repeated one the last. A length that lies ends the list, as in the kernel."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, repeated ones too."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length = int.from_bytes(data[offset : offset + 2], byteorder)
        if length < 4 or offset + length > end:
            return
        kind = int.from_bytes(data[offset + 2 : offset + 4], byteorder)
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def as_text(payload: bytes) -> str:
    """A string attribute without its final zero."""
    return payload.rstrip(b"\0").decode(errors="replace")


def as_number(payload: bytes) -> int:
    """An integer attribute in this machine's byte order."""
    return int.from_bytes(payload, byteorder)


class Netlink:
    """One socket of a netlink family, in the network namespace of the thread that opened it.

    ``fd`` is such a socket's descriptor, of ``detach``, to go on with; this object owns it then.
    """

    def __init__(self, family: int, fd: int = -1) -> None:
        self._sequence = 0
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        if fd >= 0:
            self._socket = _socket.socket(_socket.AF_NETLINK, kind, family, fd)
            return
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, family)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:  # a kernel before 4.20: errors without words, dumps that filter less
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on; this object can no longer be used."""
        return self._socket.detach()

    def request(self, messages: Sequence[Message], *, acknowledge: int = -1) -> None:
        """Send all in one piece and wait for the answer to the one at ``acknowledge``, normally the last.

        Only that message asks for an acknowledgement, since errors are always reported. OSError with the
        kernel's own words for the first message that failed.
        """
        if not messages:
            return
        answered = range(len(messages))[acknowledge]
        first = self._send(messages, answered, NLM_F_ACK)
        while True:
            for header, payload in self._receive():
                index = header.nlmsg_seq - first
                if header.nlmsg_type != NLMSG_ERROR or not 0 <= index < len(messages):
                    continue  # what a batch that failed earlier left in the socket
                _raise(header, payload, messages[index].what)
                if index == answered:
                    return

    def get(self, message: Message) -> bytes | None:
        """The body of the one object that a request names, or None where there is none."""
        first = self._send((message,), -1, 0)
        while True:
            for header, payload in self._receive():
                if header.nlmsg_seq != first:
                    continue
                if header.nlmsg_type != NLMSG_ERROR:
                    return payload
                try:
                    _raise(header, payload, message.what)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENODEV):
                        return None
                    raise
                raise OSError(errno.EPROTO, f"{message.what}: the kernel acknowledged a question")

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All objects of a kind: (message type, body). Taken again when the table changed meanwhile."""
        for _ in range(_DUMP_ATTEMPTS):
            found, consistent = self._dump(message)
            if consistent:
                break
        return found

    def _dump(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        first = self._send((message,), -1, NLM_F_DUMP)
        found: list[tuple[int, bytes]] = []
        size, consistent = 0, True
        while True:
            for header, payload in self._receive():
                if header.nlmsg_seq != first:
                    continue
                consistent = consistent and not header.nlmsg_flags & NLM_F_DUMP_INTR
                if header.nlmsg_type in (NLMSG_DONE, NLMSG_ERROR):
                    _raise(header, payload, message.what)
                    return found, consistent
                found.append((header.nlmsg_type, payload))
                size += len(payload)
                if size > _DUMP_MAX:
                    raise OSError(errno.EMSGSIZE, f"{message.what}: more than {_DUMP_MAX} bytes of answers")

    def _send(self, messages: Sequence[Message], answered: int, flags: int) -> int:
        first = self._sequence + 1
        pieces: list[bytes] = []
        for index, message in enumerate(messages):
            header = nlmsghdr(
                nlmsg_len=_HEADER + len(message.body),
                nlmsg_type=message.type,
                nlmsg_flags=NLM_F_REQUEST | message.flags | (flags if answered in (index, -1) else 0),
                nlmsg_seq=first + index,
            )
            pieces += pack(header), message.body
        self._sequence += len(messages)
        self._socket.send(b"".join(pieces))
        return first

    def _receive(self) -> list[tuple[nlmsghdr, bytes]]:
        data = self._socket.recv(_RECEIVE)
        found, offset = [], 0
        while offset + _HEADER <= len(data):
            header = unpack(nlmsghdr, data, offset)
            if not _HEADER <= header.nlmsg_len <= len(data) - offset:
                raise OSError(errno.EPROTO, f"netlink: a message of {header.nlmsg_len} bytes in {len(data)}")
            found.append((header, data[offset + _HEADER : offset + header.nlmsg_len]))
            offset += (header.nlmsg_len + 3) & ~3
        return found


def _raise(header: nlmsghdr, payload: bytes, what: str) -> None:
    """Raise for an answer that is an error. Its payload: the errno, the request's header, the kernel's words."""
    code = -int.from_bytes(payload[:4], byteorder, signed=True)
    if code <= 0:
        return
    words = ""
    if header.nlmsg_flags & NLM_F_ACK_TLVS:
        start = 4 if header.nlmsg_type == NLMSG_DONE else _ERROR
        words = as_text(attributes(payload[start:]).get(NLMSGERR_ATTR_MSG, b""))
    raise OSError(code, f"{what}: {words or os.strerror(code)}")
