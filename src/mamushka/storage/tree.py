"""Looking into a workload's root from outside, and copying in and out, while its processes change it.

Every path is resolved by the kernel as if the workload's root were the whole world; what has been found is
held as a descriptor, and the last name of a path is never followed. So the worst that a racing process
reaches is that the copy lands, or comes from, elsewhere in its own root.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from mamushka.errors import Conflict, GuestFault, Invalid, NotFound
from mamushka.linux.fd import open_in_root
from mamushka.spec.tar import DIRECTORY, LINK, REGULAR, SYMLINK, Member, Reader
from mamushka.spec.tar_write import END
from mamushka.storage.make import Maker
from mamushka.storage.pack import Packer, walk
from mamushka.storage.remove import remove as delete
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# A listing stays in memory; a workload can make a million names in seconds.
ENTRIES_MAX = 1 << 20


@value
class Stat:
    """One file: ``mode`` is st_mode, ``mtime`` nanoseconds, ``link`` what a symbolic link says."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link: str = ""


def stat(root: int, path: str) -> Stat:
    """A file below ``root``; the last name is not followed unless a slash ends the path. NotFound, or Invalid."""
    at, base, name = _find(root, path)
    try:
        found = os.lstat(base, dir_fd=at)
        link = os.fsdecode(os.readlink(base, dir_fd=at)) if modes.S_ISLNK(found.st_mode) else ""
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path!r}") from error
    finally:
        os.close(at)
    return Stat(os.fsdecode(name), found.st_size, found.st_mode, found.st_mtime_ns, link)


def entries(root: int, path: str) -> list[Stat]:
    """What a directory below ``root`` holds, in no order. NotFound; Invalid where it is no directory."""
    try:
        fd = open_in_root(root, os.fsencode(path), _DIRECTORY)
    except FileNotFoundError as error:
        raise NotFound(f"no such directory: {path!r}") from error
    except NotADirectoryError as error:
        raise Invalid(f"not a directory: {path!r}") from error
    try:
        names = os.listdir(fd)
        if len(names) > ENTRIES_MAX:
            raise GuestFault(f"{path!r} has {len(names)} entries, more than {ENTRIES_MAX}")
        return [found for name in names if (found := _entry(fd, name)) is not None]
    finally:
        os.close(fd)


def remove(root: int, path: str, *, recursive: bool = False) -> None:
    """Remove a file, a link or an empty directory below ``root``, or with ``recursive`` all that is in it.

    NotFound; Conflict for a directory that is not empty; Invalid for the root itself.
    """
    at, base, name = _find(root, path)
    try:
        if base == b"." or not name:
            raise Invalid(f"cannot remove {path!r}: it is the root, or not named by its own name")
        if recursive:
            os.lstat(base, dir_fd=at)
            delete(base, at=at)
        elif modes.S_ISDIR(os.lstat(base, dir_fd=at).st_mode):
            os.rmdir(base, dir_fd=at)
        else:
            os.unlink(base, dir_fd=at)
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path!r}") from error
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise Conflict(
            f"cannot remove {path!r}: the directory is not empty", hint="ask for recursive removal"
        ) from error
    finally:
        os.close(at)


def _entry(at: int, name: str) -> Stat | None:
    """One entry; None when it has gone meanwhile."""
    try:
        found = os.lstat(name, dir_fd=at)
        link = os.readlink(name, dir_fd=at) if modes.S_ISLNK(found.st_mode) else ""
    except OSError:
        return None
    return Stat(name, found.st_size, found.st_mode, found.st_mtime_ns, link)


def pack(root: int, path: str, *, name: str | None = None) -> Iterator[bytes]:
    """A tar stream of a file or a whole directory; its members start with ``name``, or the path's last name."""
    at, base, own = _find(root, path)
    try:
        top = own if name is None else os.fsencode(name)
        packer = Packer()
        yield from packer.add(top or b".", at, base)
        if modes.S_ISDIR(os.lstat(base, dir_fd=at).st_mode):
            fd = os.open(base, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                prefix = top + b"/" if top else b""
                for below, directory, entry in walk(fd):
                    yield from packer.add(prefix + below, directory, entry)
            finally:
                os.close(fd)
        yield END
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path!r}") from error
    finally:
        os.close(at)


def unpack(root: int, path: str, chunks: Iterable[bytes], *, owner: tuple[int, int] | None = None) -> None:
    """Put the members of a tar stream into the directory ``path``; all belong to ``owner``, if one is given.

    Files replace files, directories take in directories; Conflict when one would replace the other.
    """
    _Unpacking(root, os.fsencode(path)).run(Reader(chunks), owner)


def _find(root: int, path: str) -> tuple[int, bytes, bytes]:
    """(parent descriptor, name in it, name to call it): the parent resolved inside the root."""
    text = os.fsencode(path)
    if b"\0" in text:
        raise Invalid(f"{path!r} has a zero byte in it")
    parent, _, base = text.rstrip(b"/").rpartition(b"/")
    whole = text.endswith(b"/") or base in (b"", b".", b"..")
    names = [part for part in text.split(b"/") if part not in (b"", b".", b"..")]
    try:
        at = open_in_root(root, text if whole else parent or b"/", os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no such file or directory: {path!r}") from error
    return at, b"." if whole else base, names[-1] if names else b""


class _Unpacking:
    """One archive on its way into a directory that others may use."""

    def __init__(self, root: int, path: bytes) -> None:
        self._root = root
        self._path = path
        self._maker = Maker()
        self._parent: tuple[bytes, int] | None = None

    def run(self, reader: Reader, owner: tuple[int, int] | None) -> None:
        os.close(self._open(self._path))
        directories: dict[bytes, Member] = {}
        try:
            for member in reader:
                if owner is not None:
                    member = member._replace(uid=owner[0], gid=owner[1])
                name = _inside(member.name)
                if not name:  # the directory that is copied into keeps its attributes
                    continue
                if member.kind == DIRECTORY:
                    os.close(self._directory(name))
                    directories[name] = member
                else:
                    self._replace(member, name, reader)
            for name in sorted(directories, reverse=True):
                fd = self._directory(name)
                try:
                    self._maker.directory(directories[name], fd)
                finally:
                    os.close(fd)
        finally:
            if self._parent is not None:
                os.close(self._parent[1])

    def _replace(self, member: Member, name: bytes, reader: Reader) -> None:
        head, _, base = name.rpartition(b"/")
        at = self._at(head)
        try:
            os.unlink(base, dir_fd=at)
        except FileNotFoundError:
            pass
        except IsADirectoryError as error:
            raise Conflict(f"cannot replace the directory {os.fsdecode(name)!r} by what is no directory") from error
        if member.kind == REGULAR:
            self._maker.file(member, at, base, reader.pieces())
        elif member.kind == LINK:
            self._hard_link(member, at, base)
        elif member.kind == SYMLINK:
            self._maker.symlink(member, at, base)
        else:
            self._maker.node(member, at, base)

    def _hard_link(self, member: Member, at: int, base: bytes) -> None:
        head, _, source = _inside(member.link).rpartition(b"/")
        directory = self._directory(head)
        try:
            os.link(source, base, src_dir_fd=directory, dst_dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise Invalid(f"{member.name!r} is a hard link to {member.link!r}, no file of the archive") from error
        finally:
            os.close(directory)

    def _at(self, head: bytes) -> int:
        """The parent of the present member; the next one's is mostly the same."""
        if self._parent is None or self._parent[0] != head:
            fd = self._directory(head)
            if self._parent is not None:
                os.close(self._parent[1])
            self._parent = head, fd
        return self._parent[1]

    def _directory(self, name: bytes) -> int:
        """A new descriptor of a directory below the target, made where it is missing."""
        whole = self._path.rstrip(b"/") + b"/" + name
        try:
            return self._open(whole)
        except NotFound:
            parent, _, base = name.rpartition(b"/")
            above = self._directory(parent)
            try:
                os.mkdir(base, 0o755, dir_fd=above)
            except FileExistsError:  # a link to nothing, or somebody was faster
                pass
            finally:
                os.close(above)
            return self._open(whole)

    def _open(self, path: bytes) -> int:
        try:
            return open_in_root(self._root, path, _DIRECTORY)
        except FileNotFoundError as error:
            raise NotFound(f"no such directory: {os.fsdecode(path)!r}") from error
        except NotADirectoryError as error:
            raise Conflict(f"not a directory: {os.fsdecode(path)!r}") from error


def _inside(name: bytes) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Invalid(f"the archive has a member {name[:200]!r}, which leads out of the directory")
    # each directory may have to be made, one call inside the other
    if len(parts) > 250:
        raise Invalid(f"the archive has a member {len(parts)} directories deep, more than the 250 that are allowed")
    return b"/".join(parts)
