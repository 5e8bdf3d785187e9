"""Descriptors and how paths become descriptors without being fooled on the way.

``open_in_root`` is the one way into a tree that a stranger filled: every symbolic link is resolved as if the
tree were the whole world, so no link, ``..`` or magic link leads out (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import os

from mamushka.linux.abi import sizeof, struct, syscall, u64

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
# Below a descriptor of procfs' root: "self" is a plain link there, and neither a mount nor a magic link is followed.
RESOLVE_IN_PROC = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS

F_DUPFD_CLOEXEC = 1030

LOCK_SH = 1
LOCK_EX = 2
LOCK_NB = 4

CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4


@struct
class open_how:
    """How openat2 opens and resolves. include/uapi/linux/openat2.h."""

    flags: u64
    mode: u64 = 0
    resolve: u64 = 0


@syscall(x86_64=437, aarch64=437, riscv64=437)
def openat2(dirfd: int, path: bytes, how: open_how, size: int) -> int:
    """Open with resolution rules. Linux 5.6."""
    raise NotImplementedError


@syscall(x86_64=436, aarch64=436, riscv64=436)
def close_range(first: int, last: int, flags: int) -> None:
    """Close, or mark close-on-exec, every descriptor in [first, last]. Linux 5.9, CLOEXEC 5.11."""


@syscall(x86_64=73, aarch64=32, riscv64=32)
def flock(fd: int, operation: int) -> None:
    """Lock a whole open file, also a directory. flock(2)."""


@syscall(x86_64=72, aarch64=25, riscv64=25)
def fcntl(fd: int, command: int, argument: int) -> int:
    """Commands on a descriptor that take a number. fcntl(2)."""
    raise NotImplementedError


def close_others(keep: tuple[int, ...]) -> None:
    """Close all descriptors but these; the first three become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        if fd not in keep:
            os.dup2(null, fd)
    first = 3
    for fd in sorted(fd for fd in keep if fd >= 3):
        if fd > first:
            close_range(first, fd - 1, 0)
        first = fd + 1
    close_range(first, 0x7FFFFFFF, 0)


_HOW_SIZE = sizeof(open_how)


def open_in_root(root: int, path: bytes, flags: int, mode: int = 0, *, resolve: int = 0) -> int:
    """Open ``path`` as seen by a process whose root is the directory ``root``; close-on-exec."""
    how = open_how(flags=flags | os.O_CLOEXEC, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve)
    while True:
        try:
            return openat2(root, path or b".", how, _HOW_SIZE)
        except BlockingIOError:  # EAGAIN: a rename raced with the resolution
            continue


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` below the directory ``root`` when there is no link in it (ELOOP otherwise); close-on-exec.

    For walking a tree that others change meanwhile: what is opened is what was listed, or nothing.
    """
    how = open_how(flags=flags | os.O_CLOEXEC, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    while True:
        try:
            return openat2(root, path or b".", how, _HOW_SIZE)
        except BlockingIOError:
            continue


def proc_path(fd: int) -> bytes:
    """A path to what an O_PATH descriptor names, for calls that only take paths; needs /proc."""
    return b"/proc/self/fd/%d" % fd
