"""Compressed clusters: raw deflate or a zstd frame, behind which anything may follow up to the sector's end."""

from __future__ import annotations

from mamushka import zstandard
from mamushka.errors import Invalid, Unsupported
from mamushka.storage.qcow2.header import ZSTD

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


def expand(raw: bytes | bytearray, cluster: int, method: int) -> bytes:
    """The one cluster that was compressed; never more is made, whatever the bytes promise. Invalid otherwise."""
    try:
        data = _zstd(raw, cluster) if method == ZSTD else _deflate(raw, cluster)
    except (Invalid, Unsupported):
        raise
    except Exception as error:  # zlib.error and ZstdError, which only their modules could name
        raise Invalid(f"qcow2: a compressed cluster cannot be read: {error}") from error
    if len(data) != cluster:
        raise Invalid(f"qcow2: a compressed cluster has {len(data)} bytes, not {cluster}")
    return data


def _deflate(raw: bytes | bytearray, cluster: int) -> bytes:
    import zlib

    return zlib.decompressobj(wbits=-15).decompress(raw, cluster)


def _zstd(raw: bytes | bytearray, cluster: int) -> bytes:
    made = zstandard.decompressor()()
    data: bytes = made.decompress(bytes(raw), cluster)
    while len(data) < cluster and not made.eof and not made.needs_input:
        more = made.decompress(b"", cluster - len(data))
        if not more:
            break
        data += more
    return data
