"""Deleting a tree that a stranger filled, by descriptors: no link is followed, no depth is too deep.

A directory that lies deeper than there are descriptors for is first renamed to the top of the tree, so that
both descriptors and stack stay few; that also keeps every step within PATH_MAX.
"""

from __future__ import annotations

import errno
import os

from mamushka.linux.inode import make_mutable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DEPTH = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READABLE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def remove(path: str | bytes, *, at: int | None = None) -> None:
    """Delete a file, or a directory with all that is in it; harmless when it is gone or going."""
    try:
        fd = os.open(path, _DIRECTORY, dir_fd=at)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        _unlink(path, at)
        return
    try:
        device = os.fstat(fd).st_dev
        while _empty(fd, fd, device, 0):
            pass
    finally:
        os.close(fd)
    _insist(lambda: os.rmdir(path, dir_fd=at), path, at)


def _empty(fd: int, top: int, device: int, depth: int) -> bool:
    """Delete what is in a directory; whether something deep was moved to the top meanwhile."""
    moved = False
    with os.scandir(fd) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _unlink(entry.name, fd)
            elif depth == _DEPTH:
                name = entry.name
                deep = f".{os.getpid()}.{entry.inode()}"
                _insist(lambda: os.rename(name, deep, src_dir_fd=fd, dst_dir_fd=top), name, fd)  # noqa: B023
                moved = True
            else:
                moved |= _descend(entry.name, fd, top, device, depth)
    return moved


def _descend(name: str, at: int, top: int, device: int, depth: int) -> bool:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=at)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_dev != device:  # never into something that is mounted there
            raise OSError(errno.EBUSY, "something is mounted here", os.readlink(f"/proc/self/fd/{fd}"))
        moved = _empty(fd, top, device, depth + 1)
    finally:
        os.close(fd)
    _insist(lambda: os.rmdir(name, dir_fd=at), name, at)
    return moved


def _unlink(name: str | bytes, at: int | None) -> None:
    _insist(lambda: os.unlink(name, dir_fd=at), name, at)


def _insist(operation: Callable[[], None], name: str | bytes, at: int | None) -> None:
    """Do it; where that is forbidden, make the entry and its directory mutable and do it again."""
    try:
        operation()
    except FileNotFoundError:
        pass
    except PermissionError:
        thawed = _thaw(".", at)
        if not _thaw(name, at) and not thawed:
            raise
        operation()


def _thaw(name: str | bytes, at: int | None) -> bool:
    try:
        fd = os.open(name, _READABLE, dir_fd=at)
    except OSError:
        return False
    try:
        return make_mutable(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
