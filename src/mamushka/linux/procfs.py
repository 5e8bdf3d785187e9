"""The kernel's procfs, and nothing that only looks like it.

What is written below /proc decides who a process is and what it may do. A mount over /proc, or over one file in it,
would send such a write elsewhere, or nowhere (CVE-2019-16884, CVE-2025-52881). So a write goes through a descriptor of
procfs' own root, which was asked what it is, and neither a mount nor a link in the way is followed.
"""

from __future__ import annotations

import os
from errno import EINVAL, EXDEV

from mamushka.linux.abi import Annotated, s64, sizeof, struct, syscall, u64
from mamushka.linux.fd import RESOLVE_IN_PROC, open_how, openat2

PROC_SUPER_MAGIC = 0x9FA0
_ROOT_INODE = 1  # include/uapi/linux/fs.h, PROCFS_ROOT_INO: a part of procfs mounted at /proc begins with another


@struct
class statfs:
    """Of what kind a file system is. statfs(2), on machines of 64 bits."""

    f_type: s64 = 0
    f_bsize: s64 = 0
    f_blocks: u64 = 0
    f_bfree: u64 = 0
    f_bavail: u64 = 0
    f_files: u64 = 0
    f_ffree: u64 = 0
    f_fsid: u64 = 0
    f_namelen: s64 = 0
    f_frsize: s64 = 0
    f_flags: s64 = 0
    f_spare: Annotated[bytes, 32] = b""


@syscall(x86_64=138, aarch64=44, riscv64=44)
def fstatfs(fd: int, buf: statfs) -> None:
    """Ask the file system that a descriptor lies in. fstatfs(2)."""


def open_root(path: str = "/proc") -> int:
    """An O_PATH descriptor of the procfs mounted there; the caller closes it. OSError where that is something else."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = statfs()
        fstatfs(fd, found)
        if found.f_type != PROC_SUPER_MAGIC or os.fstat(fd).st_ino != _ROOT_INODE:
            raise OSError(EINVAL, f"{path} is not the kernel's procfs")
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(path: str, content: bytes) -> None:
    """Write a file below /proc in one write(2)."""
    root = open_root()
    try:
        how = open_how(flags=os.O_WRONLY | os.O_CLOEXEC, resolve=RESOLVE_IN_PROC)
        try:
            fd = openat2(root, os.fsencode(path), how, sizeof(how))
        except OSError as error:
            if error.errno == EXDEV:
                raise OSError(EXDEV, f"something is mounted over /proc/{path}") from error
            raise
    finally:
        os.close(root)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def descendants(pid: int) -> tuple[int, ...]:
    """A process and all that come from it and live, as this process's pid namespace counts. proc_pid_children(5)."""
    found, at = [pid], 0
    while at < len(found):
        try:
            for thread in os.listdir(f"/proc/{found[at]}/task"):
                with open(f"/proc/{found[at]}/task/{thread}/children", encoding="ascii") as file:
                    found += [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended, or the kernel does not tell
        at += 1
    return tuple(found)
