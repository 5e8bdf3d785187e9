"""Who uses which cluster of the file: reference counts in blocks of one cluster, found through one table.

A count of 0 means free, 1 used by one table, more that internal snapshots share it. A block that is missing counts
zeros. All numbers here are clusters of the file but where a name says ``offset``.
"""

from __future__ import annotations

import os
from struct import Struct

from mamushka.errors import Invalid
from mamushka.storage import vectors
from mamushka.storage.qcow2.cache import Cache, sync
from mamushka.storage.qcow2.header import REFTABLE_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.storage.qcow2.cache import Table
    from mamushka.storage.qcow2.header import Header

_U64 = Struct(">Q")
_TABLE_IN_HEADER = Struct(">QI")  # refcount_table_offset and refcount_table_clusters, at 48
_BUDGET = 4 << 20  # bytes of blocks in memory: with usual clusters they count 128 GiB
_WIDE = {3: Struct(">B"), 4: Struct(">H"), 5: Struct(">I"), 6: Struct(">Q")}


class Refcounts:
    """All reference counts of one image that is written."""

    def __init__(self, fd: int, header: Header) -> None:
        self._fd, self._bits, self._order = fd, header.cluster_bits, header.refcount_order
        self._cluster = header.cluster
        self.entries = header.cluster * 8 >> header.refcount_order  # counts in a block
        self.most = (1 << (1 << header.refcount_order)) - 1
        self.table = bytearray(header.refcount_clusters << header.cluster_bits)
        vectors.read_at(fd, (memoryview(self.table),), header.refcount_offset)
        self._cache = Cache(fd, header.cluster, _BUDGET)
        self._table_offset = header.refcount_offset
        self._table_dirty: set[int] = set()
        self._hint = 0  # all clusters before it are used
        self._l1 = range(header.l1_offset >> self._bits, -(-(header.l1_offset + 8 * header.l1_entries) >> self._bits))
        self.end = -(-os.lseek(fd, 0, os.SEEK_END) >> self._bits)  # nothing was ever written from this cluster on

    @property
    def full(self) -> bool:
        """Whether ``write_out`` is due."""
        return self._cache.full

    # One count

    def get(self, cluster: int) -> int:
        """How often a cluster is used."""
        table = self._block(cluster // self.entries)
        return 0 if table is None else self._read(table.data, cluster % self.entries)

    def has(self, cluster: int) -> bool:
        """Whether there is a block with this count."""
        return self._block(cluster // self.entries) is not None

    def set(self, cluster: int, count: int) -> None:
        """Change a count whose block is there."""
        table = self._block(cluster // self.entries)
        assert table is not None, cluster
        self._write(table, cluster % self.entries, count)

    def release(self, cluster: int) -> bool:
        """Count one user less; whether the cluster is free now. A count that is wrong already stays as it is."""
        count = self.get(cluster)
        if count == 0:
            return False
        self.set(cluster, count - 1)
        if count == 1:
            self._hint = min(self._hint, cluster)
        return count == 1

    def _read(self, data: bytearray, index: int) -> int:
        wide = _WIDE.get(self._order)
        if wide is not None:
            count: int = wide.unpack_from(data, index << self._order - 3)[0]
            return count
        bits = 1 << self._order  # of one, two or four bits, the lowest come first
        return data[index * bits // 8] >> index * bits % 8 & (1 << bits) - 1

    def _write(self, table: Table, index: int, count: int) -> None:
        assert 0 <= count <= self.most, count
        wide = _WIDE.get(self._order)
        if wide is not None:
            start = index << self._order - 3
            wide.pack_into(table.data, start, count)
            self._cache.touch(table, start, start + wide.size)
            return
        bits = 1 << self._order
        start, shift = index * bits // 8, index * bits % 8
        table.data[start] = table.data[start] & ~((1 << bits) - 1 << shift) | count << shift
        self._cache.touch(table, start, start + 1)

    # Blocks

    def _block(self, index: int) -> Table | None:
        if index >= len(self.table) // 8:
            return None
        offset = _U64.unpack_from(self.table, 8 * index)[0]
        if offset == 0:
            return None
        if offset % self._cluster or offset >> 56:
            raise Invalid(f"qcow2: a block of reference counts lies at {offset:#x}")
        return self._cache.get(offset)

    def _new_block(self, index: int) -> Table:
        """A block for clusters that nobody uses yet. It lies in the first of them and counts itself."""
        first = index * self.entries
        self._refuse_tables(first, 1)
        table = self._cache.put(first << self._bits, bytearray(self._cluster))
        self._write(table, 0, 1)
        _U64.pack_into(self.table, 8 * index, first << self._bits)
        self._table_dirty.add(index)
        self.end = max(self.end, first + 1)
        return table

    def _refuse_tables(self, first: int, count: int) -> None:
        """An image may say that its own tables are free. They are not to be overwritten with data."""
        table = range(self._table_offset >> self._bits, self._table_offset + len(self.table) >> self._bits)
        for used in (range(1), self._l1, table):
            if first < used.stop and used.start < first + count:
                raise Invalid("qcow2: the reference counts say that the image's own tables are free",
                              hint="qemu-img check -r all repairs that")  # fmt: skip

    # Finding free clusters

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Up to ``wanted`` free clusters in a row, now counted once: the first, and how many."""
        while True:
            index, within = divmod(self._hint, self.entries)
            if index >= len(self.table) // 8:
                self._grow()
                continue
            table = self._block(index) or self._new_block(index)
            within = self._free(table.data, within)
            if within == self.entries:
                self._hint = (index + 1) * self.entries
                continue
            count = 1
            while count < wanted and within + count < self.entries and not self._read(table.data, within + count):
                count += 1
            first = index * self.entries + within
            self._refuse_tables(first, count)
            for each in range(within, within + count):
                self._write(table, each, 1)
            self._hint = first + count
            self.end = max(self.end, self._hint)
            return first, count

    def _free(self, data: bytearray, start: int) -> int:
        """The first free entry of a block from ``start`` on; ``entries`` where there is none."""
        if self._order == 4:  # nearly every image: let the C library look
            at = 2 * start - 1
            while at % 2:
                at = data.find(b"\0\0", at + 1)
                if at < 0:
                    return self.entries
            return at // 2
        while start < self.entries and self._read(data, start):
            start += 1
        return start

    def _grow(self) -> None:
        """Move to a larger table behind everything that the present one covers, blocks for the place itself included.

        Nothing refers to the new place before the header does, and that is one write of twelve bytes.
        """
        self.write_out()
        old_first, old_count = self._table_offset >> self._bits, len(self.table) >> self._bits
        covered = len(self.table) // 8
        clusters = 2 * old_count
        blocks = -(-(clusters + 1) // (self.entries - 1)) + 1  # they count the table and themselves
        if clusters << self._bits > REFTABLE_MAX or covered + blocks > clusters << self._bits - 3:
            raise Invalid("qcow2: the image's table of reference counts cannot grow any more",
                          hint="qemu-img convert to an image with larger clusters")  # fmt: skip
        first = covered * self.entries
        table = self.table + bytearray((clusters - old_count) << self._bits)
        for number in range(blocks):
            offset = first + clusters + number << self._bits
            _U64.pack_into(table, 8 * (covered + number), offset)
            block = self._cache.put(offset, bytearray(self._cluster))
            for index in range(max(0, min(self.entries, clusters + blocks - number * self.entries))):
                self._write(block, index, 1)
        self._cache.write_out()
        vectors.write_at(self._fd, (memoryview(table),), first << self._bits)
        sync(self._fd)
        header = _TABLE_IN_HEADER.pack(first << self._bits, clusters)
        vectors.write_at(self._fd, (memoryview(header),), 48)
        sync(self._fd)
        self.table, self._table_offset, self._hint = table, first << self._bits, first
        self.end = max(self.end, first + clusters + blocks)
        for cluster in range(old_first, old_first + old_count):
            self.release(cluster)

    # To the file

    def write_out(self) -> None:
        """Write the counts. New blocks are there before the table leads to them."""
        self._cache.write_out()
        if self._table_dirty:
            sync(self._fd)
        while self._table_dirty:
            index = min(self._table_dirty)
            entry = memoryview(self.table)[8 * index : 8 * index + 8]
            vectors.write_at(self._fd, (entry,), self._table_offset + 8 * index)
            self._table_dirty.discard(index)

    @property
    def dirty(self) -> bool:
        """Whether ``write_out`` has anything to write."""
        return bool(self._cache.dirty or self._table_dirty)
