"""Flags that an inode carries beside its mode: what chattr(1) sets."""

from __future__ import annotations

import os

from mamushka.linux.abi import IOR, IOW, struct, u64

FS_APPEND_FL = 0x20
FS_IMMUTABLE_FL = 0x10
FS_TOPDIR_FL = 0x20000


@struct
class fs_flags:
    """The argument: declared long in the request, though the kernel reads and writes 32 bits of it."""

    value: u64 = 0


@IOR(ord("f"), 1)
def FS_IOC_GETFLAGS(fd: int, flags: fs_flags) -> None:
    """Read the flags. ioctl_iflags(2)."""


@IOW(ord("f"), 2)
def FS_IOC_SETFLAGS(fd: int, flags: fs_flags) -> None:
    """Set the flags. ioctl_iflags(2)."""


def spread(directory: str) -> None:
    """Tell the file system that the directories made in this one are unrelated; see chattr(1), attribute T.

    ext4 then gives each a part of the disk of its own. Otherwise all grow and vanish in one part, where the
    allocator passes over inodes that were deleted in the last minutes, one by one. Elsewhere it does nothing.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = fs_flags()
        FS_IOC_GETFLAGS(fd, flags)
        flags.value |= FS_TOPDIR_FL
        FS_IOC_SETFLAGS(fd, flags)
    except OSError:  # a hint that this file system does not know
        pass
    finally:
        os.close(fd)


def make_mutable(fd: int) -> bool:
    """Clear immutable and append-only; whether either was set. OSError where the file system knows no flags."""
    flags = fs_flags()
    FS_IOC_GETFLAGS(fd, flags)
    if not flags.value & (FS_APPEND_FL | FS_IMMUTABLE_FL):
        return False
    flags.value &= ~(FS_APPEND_FL | FS_IMMUTABLE_FL)
    FS_IOC_SETFLAGS(fd, flags)
    return True
