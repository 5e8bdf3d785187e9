"""A tmpfs that starts with what the image has at its mount point (``tmpcopyup``).

It is made and filled before the container's process exists, and attached like whatever else comes from the host. Both
trees are walked by descriptor, links are never followed, and only what a small writable directory holds is copied:
directories, regular files and symbolic links. The tmpfs' own size bounds the bytes.
"""

from __future__ import annotations

import os

from mamushka.container import rootfs
from mamushka.container.mounts import described
from mamushka.container.operation import TARGET, Inside
from mamushka.errors import Invalid
from mamushka.linux.fd import open_in_root
from mamushka.linux.mount import (
    set_attributes,
)
from mamushka.linux.tmpfs import detached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.options import Options
    from mamushka.linux.script import Script

_CHUNK = 1 << 20
# Deeper trees are not configuration or cache directories; each level holds two descriptors.
_DEPTH_MAX = 64


class AttachCopy(Inside):
    """A tmpfs, filled already."""

    __slots__ = ("destination", "pairs", "tree")

    def __init__(self, tree: int, destination: str, pairs: list[tuple[bytes, bytes | None]]) -> None:
        self.tree, self.pairs = tree, pairs
        self.destination = os.fsencode(destination)

    def describe(self) -> str:
        where = os.fsdecode(self.destination)
        return f"mount -t tmpfs {described(self.pairs)}{where} (with a copy of what is there)"

    def write(self, script: Script) -> None:
        rootfs.make_directory(script, self.destination, TARGET)
        rootfs.attach(script, script.descriptor(self.tree), TARGET, self.destination)
        script.call("close", TARGET)


def filled(destination: str, pairs: list[tuple[bytes, bytes | None]], asked: Options, tree: int, path: bytes) -> int:
    """A detached tmpfs with a copy of what is at ``path`` in a tree, if there is a directory; the caller closes it."""
    made = _make(destination, pairs)
    try:
        source = _open(tree, path)
        if source >= 0:
            try:
                copy_tree(source, made)
            finally:
                os.close(source)
        # What is to be copied into it cannot be copied into a read-only mount.
        set_attributes(made, set=asked.set)
    except BaseException:
        os.close(made)
        raise
    return made


def _open(tree: int, path: bytes) -> int:
    """The directory there; -1 where there is none, or nothing yet."""
    try:
        return open_in_root(tree, path, os.O_PATH | os.O_DIRECTORY) if tree >= 0 else -1
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _make(destination: str, pairs: list[tuple[bytes, bytes | None]]) -> int:
    try:
        return detached(pairs, 0)
    except OSError as error:
        raise Invalid(f"cannot mount -t tmpfs {described(pairs)}{destination}: {error.strerror}") from error


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
