"""Tables of one cluster each, a bounded number of them in memory, changed there and written back in one go.

Only what was written is ever evicted: when a changed table may go to the file is a question of order between several
caches, which the image decides (``write_out``).
"""

from __future__ import annotations

import os

from mamushka.storage import vectors


class Table:
    """One cluster's content. [low, high) are the bytes that the file has not yet."""

    __slots__ = ("data", "high", "low", "offset")

    def __init__(self, offset: int, data: bytearray) -> None:
        self.offset, self.data = offset, data
        self.low, self.high = len(data), 0

    def changed(self, start: int, end: int) -> None:
        """Note that bytes were changed; the owner has to be told by ``Cache.touch``."""
        self.low, self.high = min(self.low, start), max(self.high, end)


class Cache:
    """Tables by their offset in the file, least recently used first."""

    def __init__(self, fd: int, cluster: int, budget: int) -> None:
        """At most ``budget`` bytes of clean tables, but four tables in any case: some are needed at once."""
        self._fd, self._cluster = fd, cluster
        self.limit = max(4, budget // cluster)
        self._tables: dict[int, Table] = {}
        self.dirty: dict[int, Table] = {}

    @property
    def full(self) -> bool:
        """Whether so much was changed that it must be written before more is."""
        return len(self.dirty) >= self.limit // 2

    def get(self, offset: int) -> Table:
        """The table at an offset of the file; bytes behind the file's end are zeros."""
        table = self._tables.pop(offset, None)
        if table is None:
            table = Table(offset, bytearray(self._cluster))
            vectors.read_at(self._fd, (memoryview(table.data),), offset)
            self._make_room()
        self._tables[offset] = table
        return table

    def put(self, offset: int, data: bytearray) -> Table:
        """A new table, which the file has not."""
        self._make_room()
        table = self._tables[offset] = Table(offset, data)
        self.touch(table, 0, len(data))
        return table

    def touch(self, table: Table, start: int, end: int) -> None:
        """Bytes [start, end) of a table were changed."""
        table.changed(start, end)
        self.dirty[table.offset] = table

    def write_out(self) -> None:
        """Write what was changed, in no particular order."""
        while self.dirty:
            offset, table = next(iter(self.dirty.items()))
            low = table.low & ~511  # a sector is written whole by the disk below
            high = min(table.high + 511 & ~511, len(table.data))
            vectors.write_at(self._fd, (memoryview(table.data)[low:high],), offset + low)
            table.low, table.high = len(table.data), 0
            del self.dirty[offset]

    def forget(self, offset: int) -> None:
        """The cluster is no table any more."""
        self._tables.pop(offset, None)
        self.dirty.pop(offset, None)

    def _make_room(self) -> None:
        if len(self._tables) < self.limit:
            return
        for offset in self._tables:
            if offset not in self.dirty:
                del self._tables[offset]
                return


def sync(fd: int) -> None:
    """Wait until the disk has everything that was written before: the barrier between two steps."""
    os.fdatasync(fd)
