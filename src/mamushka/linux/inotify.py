"""Being told that a file changed, instead of asking again and again. inotify(7)."""

from __future__ import annotations

import os

from mamushka.linux.abi import syscall

IN_MODIFY = 0x002
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_NONBLOCK = 0o4000
IN_CLOEXEC = 0o2000000


@syscall(x86_64=294, aarch64=26, riscv64=26)
def inotify_init1(flags: int) -> int:
    """A queue of events. inotify_init1(2)."""
    raise NotImplementedError


@syscall(x86_64=254, aarch64=27, riscv64=27)
def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """Watch a file, or the entries of a directory. inotify_add_watch(2)."""
    raise NotImplementedError


def watch(path: str, mask: int) -> int:
    """A non-blocking descriptor that is readable once something in ``mask`` happened to ``path``."""
    fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    try:
        inotify_add_watch(fd, os.fsencode(path), mask)
    except OSError:
        os.close(fd)
        raise
    return fd


def drain(fd: int) -> None:
    """Forget the events that wait; which ones they were does not matter to those who look again anyway."""
    try:
        while os.read(fd, 65536):
            pass
    except BlockingIOError:
        pass
