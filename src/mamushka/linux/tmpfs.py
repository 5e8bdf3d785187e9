"""A file system of memory that is mounted nowhere as yet; and files of memory with large pages.

What memfd_create makes has large pages only where an administrator switched them on (shmem_enabled, by default never).
A file system of one's own has a setting of its own: its one file keeps it alive.
Documentation/admin-guide/mm/transhuge.rst, Documentation/filesystems/tmpfs.rst.
"""

from __future__ import annotations

import os

from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    fsconfig,
    fsmount,
    fsopen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def detached(options: Iterable[tuple[bytes, bytes | None]], attributes: int) -> int:
    """A detached tmpfs with options (None where a word has no value) and MOUNT_ATTR_*; the caller's to close."""
    fs = fsopen(b"tmpfs", FSOPEN_CLOEXEC)
    try:
        for key, item in options:
            fsconfig(fs, FSCONFIG_SET_FLAG if item is None else FSCONFIG_SET_STRING, key, item, 0)
        fsconfig(fs, FSCONFIG_CMD_CREATE, None, None, 0)
        return fsmount(fs, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(fs)


def large(length: int) -> int:
    """A file without a name, of this many bytes of zeros. OSError where none may be mounted or large pages are unknown.

    Its size is its only limit: the file system's own (half of all memory) is lifted, as a memfd has none.
    """
    options = ((b"huge", b"always"), (b"size", b"0"))
    tree = detached(options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=tree)
    finally:
        os.close(tree)
    try:
        os.ftruncate(fd, length)
    except BaseException:
        os.close(fd)
        raise
    return fd
