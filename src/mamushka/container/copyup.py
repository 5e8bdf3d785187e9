"""Filling a new tmpfs with what the image has at its mount point (``tmpcopyup``).

Both trees are walked by descriptor, links are never followed, and only what a small writable directory holds is
copied: directories, regular files and symbolic links. The tmpfs' own size bounds the bytes.
"""

from __future__ import annotations

import os

_CHUNK = 1 << 20
# Deeper trees are not configuration or cache directories; each level holds two descriptors.
_DEPTH_MAX = 64


def copy_tree(source: int, target: int, depth: int = 0) -> None:
    """Copy all entries of one directory into another; both may be O_PATH descriptors."""
    if depth > _DEPTH_MAX:
        raise OSError(40, f"the tree to copy is deeper than {_DEPTH_MAX} levels")
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    try:
        for name in os.listdir(listing):
            _copy_entry(name, listing, target, depth)
        _copy_attributes(os.fstat(listing), ".", target)
    finally:
        os.close(listing)


def _copy_entry(name: str, source: int, target: int, depth: int) -> None:
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = found.st_mode & 0o170000
    if kind == 0o120000:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    elif kind == 0o040000:
        os.mkdir(name, 0o700, dir_fd=target)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        below, made = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
        copy_tree(below, made, depth + 1)
        os.close(below)
        os.close(made)
    elif kind == 0o100000:
        _copy_file(name, source, target)
        _copy_attributes(found, name, target)


def _copy_file(name: str, source: int, target: int) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    while os.sendfile(writing, reading, None, _CHUNK):
        pass
    os.close(reading)
    os.close(writing)


def _copy_attributes(found: os.stat_result, name: str, target: int) -> None:
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target)
    os.chmod(name, found.st_mode & 0o7777, dir_fd=target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target)
