"""Mounts: the descriptor-based calls of Linux 5.2 and later, and the older ones they fall back to."""

from __future__ import annotations

from mamushka.linux.abi import sizeof, struct, syscall, u64
from mamushka.linux.fd import AT_EMPTY_PATH, AT_FDCWD

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_BINARY = 2
FSCONFIG_SET_PATH = 3
FSCONFIG_SET_PATH_EMPTY = 4
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000


@struct
class mount_attr:
    """What mount_setattr sets and clears. include/uapi/linux/mount.h."""

    attr_set: u64 = 0
    attr_clr: u64 = 0
    propagation: u64 = 0
    userns_fd: u64 = 0


@syscall(x86_64=165, aarch64=40, riscv64=40)
def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, options: bytes | None) -> None:
    """Mount by path. mount(2)."""


@syscall(x86_64=166, aarch64=39, riscv64=39)
def umount2(target: bytes, flags: int) -> None:
    """Unmount; MNT_DETACH at once, cleaned up when idle. umount2(2)."""


@syscall(x86_64=155, aarch64=41, riscv64=41)
def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make another mount the root of this mount namespace. pivot_root(2)."""


@syscall(x86_64=428, aarch64=428, riscv64=428)
def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """A descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy. Linux 5.2."""
    raise NotImplementedError


@syscall(x86_64=429, aarch64=429, riscv64=429)
def move_mount(from_fd: int, from_path: bytes, to_fd: int, to_path: bytes, flags: int) -> None:
    """Attach a detached mount, or move one. Linux 5.2."""


@syscall(x86_64=430, aarch64=430, riscv64=430)
def fsopen(fstype: bytes, flags: int) -> int:
    """Begin to configure a filesystem. Linux 5.2."""
    raise NotImplementedError


@syscall(x86_64=431, aarch64=431, riscv64=431)
def fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None, aux: int) -> None:
    """Set one parameter, or create the superblock. Linux 5.2; the reason of a failure is read from fd."""


@syscall(x86_64=432, aarch64=432, riscv64=432)
def fsmount(fd: int, flags: int, attr_flags: int) -> int:
    """A detached mount of the configured filesystem. Linux 5.2."""
    raise NotImplementedError


@syscall(x86_64=442, aarch64=442, riscv64=442)
def mount_setattr(dirfd: int, path: bytes, flags: int, attr: mount_attr, size: int) -> None:
    """Change the properties of a mount or, with AT_RECURSIVE, of a tree. Linux 5.12."""


MOUNT_ATTR_SIZE = sizeof(mount_attr)


def attach(tree: int, target: int | bytes) -> None:
    """Put a detached mount at a path or on what a descriptor names. The descriptor stays open."""
    if isinstance(target, int):
        move_mount(tree, b"", target, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    else:
        move_mount(tree, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)


def set_attributes(tree: int, *, set: int = 0, clear: int = 0, propagation: int = 0, flags: int = 0) -> None:
    """Change a mount that a descriptor names."""
    attr = mount_attr(attr_set=set, attr_clr=clear, propagation=propagation)
    mount_setattr(tree, b"", AT_EMPTY_PATH | flags, attr, MOUNT_ATTR_SIZE)
