"""Locks that die with their holder, and can be asked about without being taken.

Open file description locks (fcntl(2), F_OFD_SETLK): a child that inherits the descriptor shares the lock,
and the lock ends when the last copy is closed, however the processes end. Unlike flock(2) they answer "does
somebody hold it?" without a moment in which the asker holds it itself and turns a third one away.
"""

from __future__ import annotations

import fcntl

from mamushka.linux.abi import s16, s32, s64, struct

F_OFD_GETLK = 36
F_OFD_SETLK = 37
F_OFD_SETLKW = 38


@struct
class flock64:
    """A byte range and how it is locked; l_len 0 reaches to the end. fcntl(2), 64-bit hosts."""

    l_type: s16
    l_whence: s16 = 0
    l_start: s64 = 0
    l_len: s64 = 0
    l_pid: s32 = 0


def take(fd: int, *, byte: int = 0, shared: bool = False, wait: bool = False) -> bool:
    """Lock one byte of a file opened for reading and writing; False when another has it and not ``wait``.

    The byte need not exist: each is a lock of its own.
    """
    wish = flock64(l_type=fcntl.F_RDLCK if shared else fcntl.F_WRLCK, l_start=byte, l_len=1)
    try:
        fcntl.fcntl(fd, F_OFD_SETLKW if wait else F_OFD_SETLK, bytes(wish))  # type: ignore[call-overload]
    except (BlockingIOError, PermissionError):
        return False
    return True


def release(fd: int, *, byte: int = 0) -> None:
    """Let go of a byte that this description has locked; harmless when it has not."""
    fcntl.fcntl(fd, F_OFD_SETLK, bytes(flock64(l_type=fcntl.F_UNLCK, l_start=byte, l_len=1)))  # type: ignore[call-overload]


def held(fd: int, *, byte: int = 0) -> bool:
    """Whether another description holds a lock on this byte of the file."""
    answer = fcntl.fcntl(fd, F_OFD_GETLK, bytes(flock64(l_type=fcntl.F_WRLCK, l_start=byte, l_len=1)))  # type: ignore[call-overload]
    return flock64.from_buffer_copy(answer).l_type != fcntl.F_UNLCK  # type: ignore[attr-defined, no-any-return]
