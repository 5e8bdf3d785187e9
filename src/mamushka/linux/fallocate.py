"""Holes in files and block devices: the blocks are given back, what is read there are zeros."""

from __future__ import annotations

from mamushka.linux.abi import syscall

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10


@syscall(x86_64=285, aarch64=47, riscv64=47)
def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the blocks behind a part of a file; on block devices since Linux 4.9. fallocate(2)."""
