"""Layers as they are stored: gzip (one member or many), zstd (frames, also skippable) or plain tar.

What a layer is compressed with is told by its first bytes, never by its media type, which images get wrong.
Every call into a decompressor has a bounded output, so a bomb costs its reader no memory, and the sum is
bounded too. isal decompresses gzip twice as fast as zlib and serves where it is installed.
"""

from __future__ import annotations

from mamushka import zstandard
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    class _Decompressor(Protocol):
        eof: bool
        unused_data: bytes

        def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


GZIP, ZSTD, PLAIN = "gzip", "zstd", "tar"
# Output is asked for in pieces of this size: large enough that a thread gives up the GIL for long stretches.
PIECE = 1 << 20
# gzip cannot expand more than 1032 times (RFC 1951: 258 bytes from two bits); beyond that, and beyond what any
# disk has to spare for a layer that came as a few kilobytes, zstd is a bomb.
RATIO_MAX = 1100
FLOOR = 4 << 30


def detect(head: bytes) -> str:
    """The compression that begins with these bytes; at least four should be given."""
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return ZSTD
    return PLAIN


def decompress(chunks: Iterable[bytes], *, size: int, what: str = "the layer") -> Iterator[bytes]:
    """The plain bytes of a stream that has ``size`` bytes as stored. Raises Invalid for a broken or bloated one."""
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= 4:
            break
    kind = detect(head)
    pieces = _plain(head, stream) if kind == PLAIN else _expand(head, stream, _engine(kind), what)
    left = max(FLOOR, size * RATIO_MAX)
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise Invalid(f"{what} of {size} bytes expands beyond {max(FLOOR, size * RATIO_MAX)} bytes")
        yield piece


def _plain(head: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from stream


def _engine(kind: str) -> Callable[[], _Decompressor]:
    if kind == GZIP:
        module = _gzip()
        return lambda: module.decompressobj(wbits=31)
    return zstandard.decompressor()


def _gzip() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib
    return isal_zlib


def _expand(head: bytes, stream: Iterator[bytes], engine: Callable[[], _Decompressor], what: str) -> Iterator[bytes]:
    """Members or frames one after the other, as both formats allow."""
    current: _Decompressor | None = None
    waiting = head
    while True:
        if not waiting:
            waiting = next(stream, b"")
            if not waiting:
                break
        if current is None:
            if not waiting.strip(b"\0"):  # padding after the last member
                waiting = b""
                continue
            current = engine()
        yield from _feed(current, waiting, what)
        waiting = current.unused_data if current.eof else b""
        if current.eof:
            current = None
    if current is not None:
        raise Invalid(f"{what} ends in the middle of its compressed stream")


def _feed(current: _Decompressor, given: bytes, what: str) -> Iterator[bytes]:
    """Push ``given`` through, piece by piece, until it is used up or the member ends."""
    while True:
        try:
            piece = current.decompress(given, PIECE)
        except Exception as error:  # zlib.error, isal's IsalError and ZstdError have no common base but this
            raise Invalid(f"{what} is not what it was compressed as: {error}") from error
        if piece:
            yield piece
        given = getattr(current, "unconsumed_tail", b"")
        if current.eof or (len(piece) < PIECE and not given):
            return
