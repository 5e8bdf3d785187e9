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


# A word of 64 bits for each page of this process. Documentation/admin-guide/mm/pagemap.rst.
PAGEMAP = "/proc/self/pagemap"
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
_PAGE, _WORD = 4096, 8
_PAGES_AT_ONCE = 1 << 16


def own_pages(pagemap: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a private mapping of which this process has pages of its own: (first byte, first byte behind), from
    the mapping's beginning. ``pagemap`` is a descriptor of PAGEMAP."""
    begin, page = -1, 0
    while page < length // _PAGE:
        count = min(_PAGES_AT_ONCE, length // _PAGE - page)
        raw = os.pread(pagemap, count * _WORD, (address // _PAGE + page) * _WORD)
        if not raw:
            break
        if begin < 0 and not raw.strip(b"\0"):
            page += len(raw) // _WORD  # nothing of it was ever touched
            continue
        for word in memoryview(raw).cast("Q"):
            own = word & _SWAPPED or (word & _PRESENT and not word & _OF_FILE)
            if own and begin < 0:
                begin = page * _PAGE
            elif not own and begin >= 0:
                yield begin, page * _PAGE
                begin = -1
            page += 1
    if begin >= 0:
        yield begin, page * _PAGE


def view_of(address: int, length: int) -> memoryview:
    """Bytes of this process, writable where the mapping is. The caller keeps the mapping while the view lives."""
    return memoryview((c_ubyte * length).from_address(address)).cast("B")


def address_of(view: memoryview) -> int:
    """Where the bytes of a writable view lie in this process."""
    return addressof(c_ubyte.from_buffer(view))
