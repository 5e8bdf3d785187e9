"""Files become members of a tar stream, read through descriptors while others may change the tree.

What is opened is what was listed or it is left out; a file that shrinks while it is read is filled with
zeros and one that grows is cut, so that the archive stays whole.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Invalid
from mamushka.linux import xattr
from mamushka.linux.fd import open_beneath
from mamushka.spec.tar import BLOCK, CHARACTER, DIRECTORY, FIFO, LINK, NAME_MAX, REGULAR, SYMLINK, Member
from mamushka.spec.tar_write import header, padding
from mamushka.storage.make import FOREIGN_XATTRS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Member types by file type; a socket has none.
KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
    stat.S_IFIFO: FIFO,
}


class Packer:
    """Writes members; it remembers inodes with several names, so that the later ones become hard links."""

    def __init__(self) -> None:
        self._first_names: dict[tuple[int, int], bytes] = {}

    def add(self, member_name: bytes, at: int, name: bytes) -> Iterator[bytes]:
        """The entry ``name`` of the directory ``at``, without what is below it. Sockets are left out, as by tar."""
        try:
            found = os.lstat(name, dir_fd=at)
        except FileNotFoundError:
            return
        kind = KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return
        if kind != DIRECTORY and found.st_nlink > 1:
            first = self._first_names.setdefault((found.st_dev, found.st_ino), member_name)
            if first != member_name:
                yield header(member_of(member_name, LINK, found, link=first))
                return
        if kind == REGULAR:
            yield from self._file(member_name, at, name)
        elif kind == SYMLINK:
            link = os.readlink(name, dir_fd=at)
            yield header(member_of(member_name, kind, found, link=link, xattrs=xattr.read_at(at, name)))
        else:
            yield header(member_of(member_name, kind, found, xattrs=xattr.read_at(at, name)))

    def _file(self, member_name: bytes, at: int, name: bytes) -> Iterator[bytes]:
        try:
            fd = os.open(name, _READ, dir_fd=at)
        except OSError:  # it has become something else
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return
            yield header(member_of(member_name, REGULAR, found, xattrs=xattr.read(fd)))
            missing = found.st_size
            while missing:
                piece = os.read(fd, min(missing, _PIECE)) or bytes(min(missing, _PIECE))
                missing -= len(piece)
                yield piece
            yield padding(found.st_size)
        finally:
            os.close(fd)


def member_of(
    name: bytes, kind: bytes, found: os.stat_result, *, link: bytes = b"", xattrs: dict[str, bytes] | None = None
) -> Member:
    """What an archive says of a file."""
    device = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in (CHARACTER, BLOCK) else (0, 0)
    kept = sorted((key, item) for key, item in (xattrs or {}).items() if not key.startswith(FOREIGN_XATTRS))
    return Member(
        name,
        kind,
        found.st_mode & 0o7777,
        found.st_uid,
        found.st_gid,
        found.st_size if kind == REGULAR else 0,
        found.st_mtime_ns,
        link,
        *device,
        tuple(kept),
    )


def walk(root: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Everything below a directory: (path, directory descriptor, name), a directory before what is in it.

    The descriptor is valid until the next entry. Links are not followed, whoever changes the tree meanwhile.
    """
    pending = [b""]
    while pending:
        path = pending.pop()
        if len(path) > NAME_MAX:
            raise Invalid(f"{path[:80]!r}… lies deeper than a path can say")
        try:
            fd = open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # gone, or a link now
            continue
        try:
            below = []
            for name in sorted(map(os.fsencode, os.listdir(fd))):
                whole = path + b"/" + name if path else name
                yield whole, fd, name
                if is_directory(fd, name):
                    below.append(whole)
            pending.extend(reversed(below))
        finally:
            os.close(fd)


def is_directory(at: int, name: bytes) -> bool:
    """Whether the entry is a directory now."""
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=at).st_mode)
    except FileNotFoundError:
        return False
