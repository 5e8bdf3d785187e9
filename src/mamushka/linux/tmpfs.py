"""Files of memory with large pages, whatever the host says of other files of memory.

What memfd_create makes has large pages only where an administrator switched them on (shmem_enabled, by default never).
A file system of one's own has a setting of its own. It is mounted nowhere: its one file keeps it alive.
Documentation/admin-guide/mm/transhuge.rst, Documentation/filesystems/tmpfs.rst.
"""

from __future__ import annotations

import os

from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
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


def large(length: int) -> int:
    """A file without a name, of this many bytes of zeros. OSError where none may be mounted or large pages are unknown.

    Its size is its only limit: the file system's own (half of all memory) is lifted, as a memfd has none.
    """
    tree = _mount()
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


def _mount() -> int:
    fs = fsopen(b"tmpfs", FSOPEN_CLOEXEC)
    try:
        fsconfig(fs, FSCONFIG_SET_STRING, b"huge", b"always", 0)
        fsconfig(fs, FSCONFIG_SET_STRING, b"size", b"0", 0)
        fsconfig(fs, FSCONFIG_CMD_CREATE, None, None, 0)
        return fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    finally:
        os.close(fs)
