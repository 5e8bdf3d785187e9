"""New qcow2 images: a header, a table and blocks of reference counts, an empty L1 table; everything else is a hole."""

from __future__ import annotations

import os

from mamushka.errors import Invalid
from mamushka.storage import vectors
from mamushka.storage.block import FORMATS, SECTOR, new_file
from mamushka.storage.qcow2 import header as headers
from mamushka.storage.qcow2.cache import sync
from mamushka.storage.qcow2.header import Header
from mamushka.storage.qcow2.refcounts import Refcounts
from mamushka.values import replace

DEFAULT_CLUSTER_BITS = 16  # as QEMU: tables stay small, and copying on write moves 64 KiB


def create_qcow2(
    path: str,
    size: int,
    *,
    backing: str = "",
    backing_format: str = "",
    version: int = 3,
    cluster_bits: int = DEFAULT_CLUSTER_BITS,
    refcount_order: int = 4,
    within: str | None = None,
) -> None:
    """Make an image of ``size`` bytes; with ``backing``, a path from the image's directory, ``size`` 0 takes its size.

    ``backing_format`` must be named with it, and the chain is opened once, confined as ``open_disk`` does it.
    """
    if not headers.BITS_MIN <= cluster_bits <= headers.BITS_MAX:
        raise Invalid(f"clusters of 2^{cluster_bits} bytes", hint="choose 9 to 21, usually 16")
    if version not in (2, 3) or (version == 2 and refcount_order != 4) or not 0 <= refcount_order <= 6:
        raise Invalid(f"qcow2 of version {version} with reference counts of 2^{refcount_order} bits")
    if bool(backing) != bool(backing_format) or (backing and backing_format not in FORMATS):
        raise Invalid("a backing file needs its format named", hint=f"choose one of {', '.join(FORMATS)}")
    header = Header(
        version, cluster_bits, size, 0, 0, 1 << cluster_bits, 1,
        refcount_order=refcount_order, backing=backing, backing_format=backing_format,
    )  # fmt: skip
    if backing:
        from mamushka.storage.qcow2.chain import open_backing

        below = open_backing(header, path, within or os.path.dirname(path) or ".", 0)
        size = size or below.size
        below.close()
    if size <= 0 or size % SECTOR:
        raise Invalid(f"a disk of {size} bytes: not a multiple of {SECTOR}")
    _make(path, replace(header, size=size, l1_entries=headers.l1_entries(size, cluster_bits)))


def _make(path: str, header: Header) -> None:
    """Header, then the table, blocks and the L1 table; the header is written last, so that half of an image is none."""
    bits, cluster = header.cluster_bits, header.cluster
    if header.l1_entries * 8 > headers.L1_MAX:
        raise Invalid(f"a disk of {header.size} bytes is too large for clusters of {cluster} bytes")
    entries = cluster * 8 >> header.refcount_order
    l1 = -(-header.l1_entries * 8 // cluster)
    blocks = table = 1
    while True:  # they count themselves too
        used = 1 + table + blocks + l1
        more = (-(-used // entries), -(-8 * -(-used // entries) // cluster))
        if more == (blocks, table):
            break
        blocks, table = max(blocks, more[0]), max(table, more[1])
    header = replace(header, refcount_clusters=table, l1_offset=1 + table + blocks << bits)
    raw = headers.pack(header)
    fd = new_file(path)
    try:
        os.ftruncate(fd, used << bits)
        numbers = b"".join((1 + table + block << bits).to_bytes(8, "big") for block in range(blocks))
        vectors.write_at(fd, (memoryview(numbers),), header.refcount_offset)
        refcounts = Refcounts(fd, header)
        for each in range(used):
            refcounts.set(each, 1)
        refcounts.write_out()
        sync(fd)
        vectors.write_at(fd, (memoryview(raw),), 0)
        sync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
