"""Mappings of this process by their address, which Python's own mmap does not tell, and anonymous files."""

from __future__ import annotations

import os

from mamushka.linux.abi import syscall
from mamushka.linux.foreign import addressof, c_ubyte

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
MAP_SHARED = 1
MAP_PRIVATE = 2
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2

MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_REMOVE = 9
MADV_MERGEABLE = 12
MADV_HUGEPAGE = 14
MADV_DONTDUMP = 16
MADV_DONTFORK = 10
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23


@syscall(x86_64=9, aarch64=222, riscv64=222)
def mmap(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """Map a file, or nothing, into this process; where it lies. mmap(2)."""
    raise NotImplementedError


@syscall(x86_64=11, aarch64=215, riscv64=215)
def munmap(address: int, length: int) -> None:
    """Take a mapping away. munmap(2)."""


@syscall(x86_64=25, aarch64=216, riscv64=216)
def mremap(address: int, length: int, new_length: int, flags: int, new_address: int) -> int:
    """Move a mapping, with the pages that it has; where it lies then. mremap(2)."""
    raise NotImplementedError


@syscall(x86_64=28, aarch64=233, riscv64=233)
def madvise(address: int, length: int, advice: int) -> None:
    """Say how memory will be used. madvise(2)."""


def memfd(name: str, length: int) -> int:
    """A file without a place on a disk, of this many bytes of zeros. memfd_create(2)."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, length)
    except BaseException:
        os.close(fd)
        raise
    return fd


# A word of 64 bits for each page of this process; its highest byte says: present, swapped, of a file or shared.
# Documentation/admin-guide/mm/pagemap.rst.
PAGEMAP = "/proc/self/pagemap"
_PRESENT, _SWAPPED, _OF_FILE = 1 << 7, 1 << 6, 1 << 5
_OWN = bytes(bool(flags & _SWAPPED or (flags & _PRESENT and not flags & _OF_FILE)) for flags in range(256))
_PAGE, _WORD = 4096, 8
_PAGES_AT_ONCE = 1 << 16


def own_pages(pagemap: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a private mapping of which this process has pages of its own: (first byte, first byte behind), from
    the mapping's beginning. ``pagemap`` is a descriptor of PAGEMAP. No page is looked at alone: there are many."""
    for first in range(0, length // _PAGE, _PAGES_AT_ONCE):
        count = min(_PAGES_AT_ONCE, length // _PAGE - first)
        words = os.pread(pagemap, count * _WORD, (address // _PAGE + first) * _WORD)
        own = words[_WORD - 1 :: _WORD].translate(_OWN)
        begin = own.find(1)
        while begin >= 0:
            end = own.find(0, begin)
            end = len(own) if end < 0 else end
            yield (first + begin) * _PAGE, (first + end) * _PAGE
            begin = own.find(1, end)


def view_of(address: int, length: int) -> memoryview:
    """Bytes of this process, writable where the mapping is. The caller keeps the mapping while the view lives."""
    return memoryview((c_ubyte * length).from_address(address)).cast("B")


def address_of(view: memoryview) -> int:
    """Where the bytes of a writable view lie in this process."""
    return addressof(c_ubyte.from_buffer(view))
