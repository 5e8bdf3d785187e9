"""A tree copied on one host with everything that belongs to it: owners, modes, times, attributes, links, holes.

File content goes through copy_file_range, which shares blocks where the file system can (xfs, btrfs) and
never passes through this process where it cannot.
"""

from __future__ import annotations

import os
import stat

from mamushka.linux import xattr
from mamushka.linux.fallocate import copy as copy_content
from mamushka.linux.fd import open_beneath
from mamushka.spec.tar import DIRECTORY, REGULAR, SYMLINK
from mamushka.storage.make import Maker
from mamushka.storage.pack import KINDS, member_of, walk

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def copy(source: int, target: int) -> None:
    """Copy all below the directory ``source``, and its own attributes, into the empty directory ``target``.

    The source may change meanwhile; nobody else uses the target.
    """
    maker, first_names = Maker(), dict[tuple[int, int], bytes]()
    directories = [b""]
    for path, at, name in walk(source):
        try:
            found = os.lstat(name, dir_fd=at)
        except FileNotFoundError:
            continue
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            first = first_names.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                os.link(first, path, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
                continue
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(path, 0o700, dir_fd=target)
            directories.append(path)
        else:
            _copy_entry(maker, found, at, name, target, path)
    for path in reversed(directories):
        _finish(maker, source, target, path)


def _copy_entry(maker: Maker, found: os.stat_result, at: int, name: bytes, target: int, path: bytes) -> None:
    kind = KINDS.get(stat.S_IFMT(found.st_mode))
    if kind == REGULAR:
        _copy_file(at, name, target, path)
    elif kind == SYMLINK:
        member = member_of(path, kind, found, link=os.readlink(name, dir_fd=at), xattrs=xattr.read_at(at, name))
        maker.symlink(member, target, path)
    elif kind is not None:  # a socket means nothing without its process
        maker.node(member_of(path, kind, found, xattrs=xattr.read_at(at, name)), target, path)


def _copy_file(at: int, name: bytes, target: int, path: bytes) -> None:
    source = os.open(name, _READ, dir_fd=at)
    try:
        found = os.fstat(source)
        fd = os.open(path, _CREATE, 0o600, dir_fd=target)
        try:
            copy_content(source, fd, found.st_size)
            os.fchown(fd, found.st_uid, found.st_gid)
            os.fchmod(fd, found.st_mode & 0o7777)
            for key, content in member_of(path, REGULAR, found, xattrs=xattr.read(source)).xattrs:
                os.setxattr(fd, key, content)
            os.utime(fd, ns=(found.st_mtime_ns, found.st_mtime_ns))
        finally:
            os.close(fd)
    finally:
        os.close(source)


def _finish(maker: Maker, source: int, target: int, path: bytes) -> None:
    try:
        fd = open_beneath(source, path, _DIRECTORY)
    except OSError:  # gone meanwhile
        return
    try:
        member = member_of(path, DIRECTORY, os.fstat(fd), xattrs=xattr.read(fd))
    finally:
        os.close(fd)
    fd = open_beneath(target, path, _DIRECTORY)
    try:
        maker.directory(member, fd)
    finally:
        os.close(fd)
