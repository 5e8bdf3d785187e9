"""Counting anew what an image uses, after a program that counts lazily (``lazy_refcounts``) did not close it.

Such an image is marked as dirty: its tables are right, and its counts may be too low, so that clusters in use could be
taken for free ones. All tables are walked, also those of snapshots, and counts that are too low are raised. Ones
that are too high are leaks, as elsewhere, and stay: what uses those clusters might be something that we do not know.
"""

from __future__ import annotations

import os
from struct import Struct, unpack_from

from mamushka.errors import Invalid
from mamushka.storage import vectors
from mamushka.storage.qcow2.cache import sync
from mamushka.storage.qcow2.header import DIRTY, L1_MAX
from mamushka.storage.qcow2.refcounts import Refcounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.storage.qcow2.header import Header

_HOST = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_SNAPSHOT = Struct(">QIHHIIQII")  # L1 offset and entries, lengths of id and name, three we do not need, size, extra
_EXTRA_MAX = 1024  # bytes of a snapshot's extra data; QEMU's bound too
# Bytes of tables that are walked while somebody waits for his machine: some seconds' worth, which map 4 TiB.
_TABLES_MAX = 512 << 20
# Clusters that are counted, each a hundred bytes meanwhile: 256 GiB of usual ones. A sparse file claims any number.
_CLUSTERS_MAX = 4 << 20


def recount(fd: int, header: Header) -> None:
    """Raise what is counted too low, and take the mark away. Invalid where that is more than can be done here."""
    hint = "qemu-img check -r all does it"
    counts: dict[int, int] = {}
    refcounts = Refcounts(fd, header)
    used, end = _Walk(fd, header).used(), os.lseek(fd, 0, os.SEEK_END)
    for offset, length in used:
        if offset + length > end + header.cluster:
            raise Invalid(f"qcow2: a table leads to {offset:#x}, behind the file's end", hint=hint)
        for cluster in range(offset >> header.cluster_bits, (offset + length - 1 >> header.cluster_bits) + 1):
            counts[cluster] = counts.get(cluster, 0) + 1
        if len(counts) > _CLUSTERS_MAX:
            raise Invalid(f"qcow2: more than {_CLUSTERS_MAX} clusters to count anew", hint=hint)
    for cluster, count in counts.items():
        if count > refcounts.most:
            raise Invalid(f"qcow2: cluster {cluster} is used {count} times", hint=hint)
        if not refcounts.has(cluster):
            raise Invalid("qcow2: blocks of reference counts are missing", hint=hint)
        if refcounts.get(cluster) < count:
            refcounts.set(cluster, count)
            if refcounts.full:
                refcounts.write_out()
    refcounts.write_out()
    sync(fd)
    mark = (header.incompatible & ~DIRTY).to_bytes(8, "big")
    vectors.write_at(fd, (memoryview(mark),), 72)
    sync(fd)


class _Walk:
    """Everything that an image uses, as (offset, bytes)."""

    def __init__(self, fd: int, header: Header) -> None:
        self._fd, self._header, self._left = fd, header, _TABLES_MAX

    def used(self) -> Iterator[tuple[int, int]]:
        """Once for each use."""
        header = self._header
        yield 0, 1
        table = header.refcount_clusters << header.cluster_bits
        yield header.refcount_offset, table
        for offset in self._entries(header.refcount_offset, table // 8):
            yield offset & _HOST, 1
        yield from self._first(header.l1_offset, header.l1_entries)
        yield from self._snapshots()

    def _snapshots(self) -> Iterator[tuple[int, int]]:
        at = self._header.snapshots_offset
        for _ in range(self._header.snapshots):
            raw = os.pread(self._fd, _SNAPSHOT.size, at)
            if len(raw) < _SNAPSHOT.size:
                raise Invalid("qcow2: the table of snapshots is cut off")
            l1_offset, l1_entries, name, text, _, _, _, _, extra = _SNAPSHOT.unpack(raw)
            if l1_entries * 8 > L1_MAX or extra > _EXTRA_MAX:
                raise Invalid(f"qcow2: a snapshot with a table of {l1_entries} entries")
            yield from self._first(l1_offset, l1_entries)
            at += _SNAPSHOT.size + extra + name + text + 7 & ~7
        if self._header.snapshots:
            yield self._header.snapshots_offset, at - self._header.snapshots_offset

    def _first(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        if not count:
            return
        yield offset, 8 * count
        for entry in self._entries(offset, count):
            yield entry & _HOST, 1
            for inner in self._entries(entry & _HOST, self._header.cluster // 8):
                yield from self._data(inner)

    def _data(self, entry: int) -> Iterator[tuple[int, int]]:
        if entry & _COMPRESSED:
            width = 62 - (self._header.cluster_bits - 8)
            offset = entry & (1 << width) - 1
            sectors = (entry >> width & (1 << self._header.cluster_bits - 8) - 1) + 1
            yield offset, sectors * 512 - (offset & 511)
        elif entry & _HOST:
            yield entry & _HOST, 1

    def _entries(self, offset: int, count: int) -> Iterator[int]:
        """Those of a table that are not zero."""
        self._left -= 8 * count
        if self._left < 0:
            raise Invalid(f"qcow2: more than {_TABLES_MAX} bytes of tables to count anew",
                          hint="qemu-img check -r all does it")  # fmt: skip
        raw = bytearray(8 * count)
        vectors.read_at(self._fd, (memoryview(raw),), offset)
        if any(raw):
            yield from (entry for entry in unpack_from(f">{count}Q", raw) if entry)
