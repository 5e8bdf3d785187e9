"""A qcow2 image as a disk: two tables lead from offsets of the guest to clusters of the file.

    guest offset = L1 index | L2 index | offset in the cluster
    L1 table (in memory) -> L2 tables (one cluster each, cached) -> data clusters

An L2 entry is missing (look into the backing file, or zeros), zeros, compressed (read only; a write makes a plain
cluster of it), or data. Bit 63, COPIED, says that the cluster is used once: only then is it overwritten in place. All
else is copied on write to fresh clusters, which is also what keeps internal snapshots intact.

The order of writes is what makes an image survive, whenever this process or the host ends. A table never leads to
something that is not in the file yet, and a cluster is never free while something in the file still leads to it:

    1 data goes into fresh clusters at once; tables and counts change in memory
    2 counts that were raised are written, then a barrier (fdatasync), which also covers the data
    3 L2 tables are written; a barrier; L1 entries that lead to new ones are written; a barrier
    4 counts of what is not led to any more are lowered, in memory; they are written with the next round's

So the worst is a leak: a cluster that is counted and not used, which ``qemu-img check`` shows as such. Rounds are made
by ``flush`` and when too many changed tables have gathered. Between them nothing is lost for the guest either that
it had asked to be kept.
"""

from __future__ import annotations

import os
from struct import Struct, unpack_from

from mamushka import trace
from mamushka.errors import Invalid
from mamushka.storage import vectors
from mamushka.storage.block import hole, inside
from mamushka.storage.qcow2 import header as headers
from mamushka.storage.qcow2.cache import Cache, sync
from mamushka.storage.qcow2.compressed import expand
from mamushka.storage.qcow2.refcounts import Refcounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mamushka.storage.block import Disk
    from mamushka.storage.qcow2.cache import Table
    from mamushka.storage.qcow2.header import Header

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
_HOST = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55
_U64 = Struct(">Q")
_L2_BUDGET = 8 << 20  # bytes of L2 tables in memory: with usual clusters they map 64 GiB
_RELEASED_MAX = 4096  # clusters that wait for a round to become free; bounds memory, and what a crash can leak

# What an extent is made of.
MISSING, ZEROS, DATA, PACKED = range(4)


class Qcow2:
    """The disk. Owns its descriptor and its backing file."""

    def __init__(self, fd: int, header: Header, backing: Disk | None, *, writable: bool) -> None:
        self._fd, self.header, self.backing = fd, header, backing
        self.writable, self.size, self.granularity = writable, header.size, header.cluster
        self._bits, self._mask = header.cluster_bits, header.cluster - 1
        self._l2_entries = header.cluster // 8
        self._l1 = bytearray(8 * header.l1_entries)
        vectors.read_at(fd, (memoryview(self._l1),), header.l1_offset)
        self._l1_dirty: set[int] = set()
        self._tables = Cache(fd, header.cluster, _L2_BUDGET)
        self._refcounts = Refcounts(fd, header) if writable else None
        self._released: list[int] = []  # clusters, once for each reference that went away since the last round
        self._cleared = header.autoclear == 0
        self._unpacked: tuple[int, bytes] = (0, b"")  # the compressed cluster that was read last
        self._broken = ""

    # Reading

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views."""
        pieces = vectors.Pieces(views)
        inside(self, offset, pieces.left)
        for kind, where, at, count in self._extents(offset, pieces.left):
            part = pieces.take(count)
            if kind == DATA:
                vectors.read_at(self._fd, part, where)
            elif kind == PACKED:
                vectors.scatter(memoryview(self._expanded(where))[at & self._mask :][:count], part)
            elif kind == MISSING and self.backing is not None:
                self._read_backing(self.backing, at, count, part)
            else:
                vectors.zero(part)

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """What [offset, offset+length) is made of: kind, offset in the file (the entry of PACKED), guest offset, bytes.

        Neighbours in the file come as one."""
        while length:
            entries = self._entries(offset, length)
            within = offset & self._mask
            kind = where = start = run = 0
            for entry in entries:
                count = min(length, self.header.cluster - within)
                this, at = self._kind(entry)
                at += within if this == DATA else 0
                joins = run and this == kind != PACKED and (this != DATA or at == where + run)
                if not joins:
                    if run:
                        yield kind, where, start, run
                    kind, where, start, run = this, at, offset, 0
                run += count
                offset, length, within = offset + count, length - count, 0
            yield kind, where, start, run

    def _entries(self, offset: int, length: int) -> tuple[int, ...]:
        """The L2 entries from ``offset`` on, as far as it needs them and one table has them."""
        index = offset >> self._bits & self._l2_entries - 1
        count = min(self._l2_entries - index, (offset & self._mask) + length + self._mask >> self._bits)
        table = self._table(offset)
        return (0,) * count if table is None else unpack_from(f">{count}Q", table.data, 8 * index)

    def _table(self, offset: int) -> Table | None:
        entry = _U64.unpack_from(self._l1, 8 * (offset >> 2 * self._bits - 3))[0]
        host = entry & _HOST
        if host & self._mask:
            raise Invalid(f"qcow2: an L2 table lies at {host:#x}")
        return self._tables.get(host) if host else None

    def _kind(self, entry: int) -> tuple[int, int]:
        if entry & COMPRESSED:
            return PACKED, entry
        host = entry & _HOST
        if host & self._mask:
            raise Invalid(f"qcow2: a cluster lies at {host:#x}")
        if entry & ZERO:
            if self.header.version < 3:
                raise Invalid("qcow2: a cluster of zeros in an image of version 2")
            return ZEROS, 0
        return (DATA, host) if host else (MISSING, 0)

    def _read_backing(self, backing: Disk, at: int, count: int, views: list[memoryview]) -> None:
        """It may be shorter than we are; behind it are zeros."""
        pieces = vectors.Pieces(views)
        there = max(0, min(count, backing.size - at))
        if there:
            backing.readv(at, pieces.take(there))
        vectors.zero(pieces.take(count - there))

    def _packed(self, entry: int) -> tuple[int, int]:
        """Where a compressed cluster lies in the file, and its bytes, rounded up to sectors."""
        width = 62 - (self._bits - 8)
        offset = entry & (1 << width) - 1
        sectors = (entry >> width & (1 << self._bits - 8) - 1) + 1
        return offset, sectors * 512 - (offset & 511)

    def _expanded(self, entry: int) -> bytes:
        if self._unpacked[0] != entry:
            offset, count = self._packed(entry)
            raw = bytearray(count)
            vectors.read_at(self._fd, (memoryview(raw),), offset)
            self._unpacked = entry, expand(raw, self.header.cluster, self.header.compression)
        return self._unpacked[1]

    # Writing

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views, in place or to fresh clusters."""
        pieces = vectors.Pieces(views)
        self._begin(offset, pieces.left)
        while pieces.left:
            offset += self._write_run(offset, pieces)

    def _begin(self, offset: int, length: int) -> Refcounts:
        inside(self, offset, length, write=True)
        if self._broken:
            raise Invalid(f"qcow2: not written any more since the host failed to: {self._broken}")
        if not self._cleared:  # dirty bitmaps and the like, which we do not keep true
            vectors.write_at(self._fd, (memoryview(bytes(8)),), 88)
            sync(self._fd)
            self._cleared = True
        assert self._refcounts is not None
        return self._refcounts

    def _write_run(self, offset: int, pieces: vectors.Pieces) -> int:
        """Write as much as goes to one place in the file; how much that was."""
        refcounts = self._room()
        table = self._own_table(offset)
        within = offset & self._mask
        entries = self._entries(offset, pieces.left)
        most = min(pieces.left, len(entries) * self.header.cluster - within)
        host = self._in_place(entries[0])
        run = 1
        if host:
            while run < len(entries) and self._in_place(entries[run]) == host + (run << self._bits):
                run += 1
            count = min(most, (run << self._bits) - within)
            vectors.write_at(self._fd, pieces.take(count), host + within)
            return count
        while run < len(entries) and not self._in_place(entries[run]):
            run += 1
        end = refcounts.end
        first, run = refcounts.allocate(run)
        blank = first >= end  # nothing was ever written there: it reads as zeros
        count = min(most, (run << self._bits) - within)
        try:
            around = (blank and self._blank(entries[0]), blank and self._blank(entries[run - 1]))
            self._fill(first << self._bits, offset, pieces.take(count), count, around)
        except BaseException:
            for cluster in range(first, first + run):
                refcounts.release(cluster)
            raise
        self._link(table, offset >> self._bits & self._l2_entries - 1, entries[:run], first)
        return count

    def _room(self) -> Refcounts:
        """Before something is changed: make a round when enough was."""
        assert self._refcounts is not None
        if self._tables.full or self._refcounts.full or len(self._released) >= _RELEASED_MAX:
            self._round()
        return self._refcounts

    def _in_place(self, entry: int) -> int:
        """The host offset of a cluster that may be overwritten; zero for all others."""
        kind, host = self._kind(entry)
        if kind != DATA or not entry & COPIED:
            return 0
        assert self._refcounts is not None
        if host >> self._bits >= self._refcounts.end:
            raise Invalid(f"qcow2: a cluster lies at {host:#x}, behind the file's end")
        return host

    def _fill(self, host: int, offset: int, views: list[memoryview], count: int, blank: tuple[bool, bool]) -> None:
        """Write data into fresh clusters, and before and behind it what was there, unless that is ``blank`` anyway."""
        start, end = offset & ~self._mask, offset + count + self._mask & ~self._mask
        head = b"" if blank[0] else self._old(start, offset - start)
        tail = b"" if blank[1] else self._old(offset + count, end - offset - count)
        at = host if head else host + offset - start
        vectors.write_at(self._fd, [memoryview(part) for part in (head, *views, tail) if len(part)], at)

    def _blank(self, entry: int) -> bool:
        kind = self._kind(entry)[0]
        return kind == ZEROS or (kind == MISSING and self.backing is None)

    def _old(self, at: int, count: int) -> bytearray:
        """Less than a cluster as it reads now; zeros behind the disk's end."""
        data = bytearray(count)
        there = max(0, min(count, self.size - at))
        if there:
            self.readv(at, (memoryview(data)[:there],))
        return data

    def _link(self, table: Table, index: int, entries: tuple[int, ...], first: int) -> None:
        for number, old in enumerate(entries):
            _U64.pack_into(table.data, 8 * (index + number), first + number << self._bits | COPIED)
            self._drop(old)
        self._tables.touch(table, 8 * index, 8 * (index + len(entries)))

    def _drop(self, entry: int) -> None:
        """What an entry led to is not needed by it any more, from the next round on."""
        if entry & COMPRESSED:
            offset, count = self._packed(entry)
            self._released += range(offset >> self._bits, (offset + count - 1 >> self._bits) + 1)
            self._unpacked = (0, b"")
        elif entry & _HOST:
            self._released.append((entry & _HOST) >> self._bits)

    def _own_table(self, offset: int) -> Table:
        """The L2 table for an offset, to be changed: a new one, or a copy of one that a snapshot shares."""
        assert self._refcounts is not None
        index = offset >> 2 * self._bits - 3
        entry = _U64.unpack_from(self._l1, 8 * index)[0]
        old = self._table(offset)
        if old is not None and entry & COPIED:
            return old
        data = bytearray(self.header.cluster) if old is None else bytearray(old.data)
        host = self._refcounts.allocate(1)[0] << self._bits
        table = self._tables.put(host, data)
        _U64.pack_into(self._l1, 8 * index, host | COPIED)
        self._l1_dirty.add(index)
        if old is not None:
            self._released.append(old.offset >> self._bits)
        return table

    # Taking away

    def discard(self, offset: int, length: int) -> None:
        """Give whole clusters back. They read as zeros then; where that cannot be said they stay as they are."""
        self._begin(offset, length)
        if self.header.version >= 3 or self.backing is None:
            start, end = self._whole(offset, length)
            self._clear(start, end, unmap=True)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let a part read as zeros: whole clusters by their entries, the rest by writing."""
        self._begin(offset, length)
        start, end = self._whole(offset, length)
        if start >= end or (self.header.version < 3 and (self.backing is not None or not unmap)):
            self._write_zeros(offset, length)
            return
        self._write_zeros(offset, start - offset)
        self._clear(start, end, unmap=unmap)
        self._write_zeros(end, offset + length - end)

    def _whole(self, offset: int, length: int) -> tuple[int, int]:
        """The whole clusters of a part; the last of the disk is whole where the disk ends."""
        end = offset + length
        return offset + self._mask & ~self._mask, end if end == self.size else end & ~self._mask

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(max(length, 0), 1 << 20)))
        while length > 0:
            part = zeros[:length]
            self.writev(offset, (part,))
            offset, length = offset + len(part), length - len(part)

    def _clear(self, offset: int, end: int, *, unmap: bool) -> None:
        span = self._l2_entries << self._bits  # what one L2 table maps
        while offset < end:
            stop = min(end, (offset // span + 1) * span)
            if self.backing is not None or self._table(offset) is not None:
                self._room()
                self._clear_table(offset, stop, unmap)
            offset = stop

    def _clear_table(self, offset: int, end: int, unmap: bool) -> None:
        index = offset >> self._bits & self._l2_entries - 1
        entries = self._entries(offset, end - offset)
        wanted = tuple(self._cleared_entry(entry, unmap) for entry in entries)
        if wanted == entries:
            return
        table = self._own_table(offset)
        for number, (old, new) in enumerate(zip(entries, wanted, strict=True)):
            if old != new:
                _U64.pack_into(table.data, 8 * (index + number), new)
                if not new & _HOST:
                    self._drop(old)
        self._tables.touch(table, 8 * index, 8 * (index + len(entries)))

    def _cleared_entry(self, entry: int, unmap: bool) -> int:
        if not unmap and self._kind(entry)[0] in (DATA, ZEROS) and entry & COPIED:
            return entry | ZERO
        return 0 if self.backing is None else ZERO

    # Lasting

    def flush(self) -> None:
        """Make a round, and wait for the disk."""
        if self._refcounts is None:
            return
        if self._broken:
            raise Invalid(f"qcow2: not written any more since the host failed to: {self._broken}")
        self._round()

    def _round(self) -> None:
        refcounts = self._refcounts
        assert refcounts is not None
        try:
            refcounts.write_out()
            sync(self._fd)
            if self._tables.dirty:
                self._tables.write_out()
                sync(self._fd)
            if self._l1_dirty:
                self._write_l1()
                sync(self._fd)
        except OSError as error:
            # After a failed fdatasync(2) the kernel forgets what was not written: nothing can be built upon it.
            self._broken = error.strerror or str(error)
            raise
        self._free()

    def _write_l1(self) -> None:
        for index in sorted(self._l1_dirty):
            entry = memoryview(self._l1)[8 * index : 8 * index + 8]
            vectors.write_at(self._fd, (entry,), self.header.l1_offset + 8 * index)
        self._l1_dirty.clear()

    def _free(self) -> None:
        """Lower the counts of what nothing leads to any more, and give the space of free clusters back."""
        assert self._refcounts is not None
        released, self._released = self._released, []
        start = run = 0
        for cluster in sorted(released):
            if not self._refcounts.release(cluster):
                continue
            self._tables.forget(cluster << self._bits)
            if run and cluster == start + run:
                run += 1
                continue
            if run:
                hole(self._fd, start << self._bits, run << self._bits)
            start, run = cluster, 1
        if run:
            hole(self._fd, start << self._bits, run << self._bits)

    def close(self) -> None:
        """Write everything and close; also what was freed is written then."""
        if self._fd < 0:
            return
        try:
            if self._refcounts is not None and not self._broken:
                self._round()
                if self._refcounts.dirty:
                    self._round()
        finally:
            os.close(self._fd)
            self._fd = -1
            if self.backing is not None:
                self.backing.close()


def open_qcow2(fd: int, path: str, *, writable: bool, within: str, depth: int) -> Qcow2:
    """The image in an open file, which is taken over when all goes well, with its chain of backing files."""
    header = headers.parse(os.pread(fd, headers.READ, 0))
    if writable and header.incompatible & headers.CORRUPT:
        raise Invalid(f"qcow2: {path} is marked as corrupt", hint=f"qemu-img check -r all {path}, or open it to read")
    if writable and header.incompatible & headers.DIRTY:
        from mamushka.storage.qcow2.recount import recount

        recount(fd, header)
        trace.event("qcow2.recounted", path=path)
    backing: Disk | None = None
    if header.backing:
        from mamushka.storage.qcow2.chain import open_backing

        backing = open_backing(header, path, within, depth)
    try:
        image = Qcow2(fd, header, backing, writable=writable)
    except BaseException:
        if backing is not None:
            backing.close()
        raise
    trace.event("qcow2.opened", path=path, size=header.size, cluster=header.cluster, backing=header.backing)
    return image
