"""Kernels and modules as distributions pack them: gzip, xz or zstd, told by the first bytes, never by the name.

They are unpacked here, when a machine is prepared: a guest's first process then needs no decompressor, and what is
unpacked can be kept.
"""

from __future__ import annotations

from mamushka import zstandard
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GZIP, XZ, ZSTD = "gzip", "xz", "zstd"
_MAGIC = ((b"\x1f\x8b\x08", GZIP), (b"\xfd7zXZ\x00", XZ), (b"\x28\xb5\x2f\xfd", ZSTD))
# The largest kernels, with all their symbols, have some hundred MB; more than this is a bomb.
UNPACKED_MAX = 1 << 30


def detect(head: bytes | memoryview) -> str:
    """What it is compressed with; empty for none of these."""
    return next((kind for magic, kind in _MAGIC if bytes(head[: len(magic)]) == magic), "")


def unpack(content: bytes | memoryview, what: str, most: int = UNPACKED_MAX) -> bytes | memoryview:
    """The plain bytes; what is not compressed is given back as it came. Invalid where it is broken or bloated."""
    kind = detect(content)
    if not kind:
        return content
    engine = _engine(kind)
    try:
        plain: bytes = engine.decompress(content, most + 1)
    except Exception as error:  # zlib.error, LZMAError and ZstdError have no common base but this
        raise Invalid(f"{what} is not the {kind} that it looks like: {error}") from error
    if len(plain) > most:
        raise Invalid(f"{what} expands beyond {most} bytes")
    if not engine.eof:
        raise Invalid(f"{what} ends in the middle of its {kind} stream")
    return plain


def _engine(kind: str) -> Any:
    """A decompressor for one stream; the module only now, as most kernels need none."""
    if kind == GZIP:
        import zlib

        return zlib.decompressobj(wbits=31)
    if kind == XZ:
        import lzma

        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    return zstandard.decompressor()()
