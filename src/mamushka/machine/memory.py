"""Guest-physical memory: regions over files or plain pages of this process, and views into them without copies.

A region maps a stretch of guest-physical addresses (gpa) onto a stretch of this process's (hva). What backs it decides
what can be done with it:

    shared memory file   MAP_SHARED of a file without a disk: can be handed to a vhost or vhost-user back end
    private              MAP_PRIVATE of a snapshot or of nothing: a write makes a page of its own, so clones share
    read-only            MAP_PRIVATE, PROT_READ of an image: the host's page cache is the guest's memory

The guest's numbers are hostile: every access is bounded by the one region that it starts in (GuestFault otherwise).
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import GuestFault
from mamushka.linux import tmpfs
from mamushka.linux.memory import (
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    memfd,
    mmap,
    munmap,
    view_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096

# What the guest's map of memory (e820, hvm_memmap) calls a region; of FILE a device tells, and the map says nothing.
RAM, PMEM, FILE, DEVICE = "ram", "pmem", "file", "device"


class Region:
    """One stretch of guest-physical memory. Owns its mapping, and its descriptor where it has one."""

    __slots__ = ("fd", "file", "hva", "kind", "length", "name", "offset", "shared", "start", "view", "writable")

    def __init__(
        self,
        start: int,
        length: int,
        *,
        fd: int = -1,
        offset: int = 0,
        shared: bool = False,
        writable: bool = True,
        kind: str = RAM,
        name: str = "",
    ) -> None:
        """Map ``length`` bytes of ``fd`` from ``offset`` (of nothing without one) to be seen at ``start``."""
        assert not (start | length | offset) % PAGE and length > 0, (start, length, offset)
        self.start, self.length, self.fd, self.offset = start, length, fd, offset
        self.shared, self.writable, self.kind, self.name = shared, writable, kind, name
        self.file = os.fstat(fd).st_ino if shared and fd >= 0 else 0  # asked now: a caged monitor may not ask any more
        flags = MAP_NORESERVE | (MAP_SHARED if shared else MAP_PRIVATE) | (MAP_ANONYMOUS if fd < 0 else 0)
        self.hva = mmap(0, length, PROT_READ | (PROT_WRITE if writable else 0), flags, fd, offset)
        view = view_of(self.hva, length)
        self.view = view if writable else view.toreadonly()

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.length

    def close(self) -> None:
        """Unmap it. Nobody may hold a view into it any more: to touch one would end this process."""
        self.view.release()
        munmap(self.hva, self.length)
        if self.fd >= 0:
            os.close(self.fd)


def ram_file(length: int) -> int:
    """A file of zeros for RAM, which other processes can be given; of large pages, where they can be had.

    With small ones each 4 KiB that a guest touches first is an exit: of a boot those are nine in ten.
    """
    try:
        return tmpfs.large(length)
    except OSError as error:  # an ordinary user may mount nothing, and not every kernel knows large pages
        trace.event("memory.small_pages", why=str(error))
        return memfd("mamushka-ram", length)


def shared_region(start: int, length: int, *, name: str = "ram") -> Region:
    """Fresh memory in a file of its own, which other processes can be given."""
    return Region(start, length, fd=memfd(f"mamushka-{name}", length), shared=True, name=name)


class Memory:
    """All regions of a machine, in order of their addresses."""

    def __init__(self, regions: tuple[Region, ...] = ()) -> None:
        self.regions: tuple[Region, ...] = ()
        for region in regions:
            self.add(region)

    def add(self, region: Region) -> None:
        """Take a region over; it must not overlap another."""
        assert all(region.end <= other.start or other.end <= region.start for other in self.regions), region.start
        self.regions = tuple(sorted((*self.regions, region), key=lambda item: item.start))

    def remove(self, region: Region) -> None:
        """Give a region back to the caller."""
        self.regions = tuple(item for item in self.regions if item is not region)

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions)

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return sum(region.length for region in self.regions if region.kind == RAM)

    def read(self, gpa: int, length: int) -> memoryview:
        """A view of guest memory, no copy. GuestFault unless [gpa, gpa+length) lies in one region.

        Valid until the region is removed; the guest may write meanwhile, so read each field once.
        """
        for region in self.regions:
            offset = gpa - region.start
            if 0 <= offset < region.length:
                if not 0 <= length <= region.length - offset:
                    break
                return region.view[offset : offset + length]
        raise GuestFault(f"address {gpa:#x}, {length} bytes, lies outside of the guest's memory")

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes into guest memory. GuestFault outside of one region, or where it is read-only."""
        view = self.read(gpa, len(data))
        if view.readonly:
            raise GuestFault(f"address {gpa:#x}, {len(data)} bytes, lies in read-only memory")
        view[:] = data

    def writable(self, gpa: int, length: int) -> memoryview:
        """``read``, of memory that may be written. GuestFault where it is read-only."""
        view = self.read(gpa, length)
        if view.readonly:
            raise GuestFault(f"address {gpa:#x}, {length} bytes, lies in read-only memory")
        return view

    def close(self) -> None:
        """Unmap everything."""
        regions, self.regions = self.regions, ()
        for region in regions:
            region.close()
