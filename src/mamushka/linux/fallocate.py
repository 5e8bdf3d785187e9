"""Holes in files and block devices: the blocks are given back, what is read there are zeros. Copies have them too."""

from __future__ import annotations

import os
from errno import EINVAL, ENOSYS, ENXIO, EOPNOTSUPP, EXDEV

from mamushka.linux.abi import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10


@syscall(x86_64=285, aarch64=47, riscv64=47)
def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the blocks behind a part of a file; on block devices since Linux 4.9. fallocate(2)."""


def data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file in [start, end) that are no holes: (first byte, first byte behind). lseek(2), SEEK_DATA."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == ENXIO:  # a hole up to the file's end
                return
            raise
        behind = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < behind:
            yield start, behind
        start = behind


_PIECE = 1 << 30  # one call moves at most 2 GiB less a page: copy_file_range(2)
_READ = 1 << 20


def copy(source: int, target: int, size: int) -> None:
    """Copy a file of ``size`` bytes to an empty one: what is no hole, sharing blocks where the file system can (xfs,
    btrfs), and never through this process where it is spared that. Where the source ends sooner, the target does too.
    """
    for position, end in data(source, 0, size):
        while position < end:
            moved = _move(source, target, position, end - position)
            if not moved:
                os.ftruncate(target, position)
                return
            position += moved
    os.ftruncate(target, size)


def _move(source: int, target: int, position: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, min(length, _PIECE), position, position)
    except OSError as error:
        if error.errno not in (EXDEV, EOPNOTSUPP, EINVAL, ENOSYS):
            raise
        return os.pwrite(target, os.pread(source, min(length, _READ), position), position)
