"""A box's files, read and written from outside; the box may run or not, and needs no program for it."""

from __future__ import annotations

import os
import posixpath
import stat as modes
import time

from mamushka.errors import GuestFault, Invalid, NotFound
from mamushka.spec.tar import DIRECTORY, REGULAR, Member, Reader
from mamushka.spec.tar_write import END, header, padding
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.engine.engine import Engine

# What ``read`` returns stays in memory; a box can make a file of any size in no time. copy_out has no such bound.
READ_MAX = 256 << 20


@value
class Stat:
    """One file, directory or link inside; ``mode`` as in ``os.stat_result``."""

    name: str
    size: int
    mode: int
    modified: float  # seconds since the epoch
    target: str = ""  # of a symbolic link

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return modes.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return modes.S_ISLNK(self.mode)


class Files:
    """``box.files``. Relative paths start at the box's working directory; no path can leave the box.

    >>> box.files.write("in.csv", "a,b\\n1,2\\n")
    >>> box.files.read("in.csv")
    b'a,b\\n1,2\\n'
    """

    def __init__(self, engine: Engine, id: str, working_directory: Callable[[], str]) -> None:
        self._engine = engine
        self._id = id
        self._working_directory = working_directory

    def read(self, path: str, *, limit: int = READ_MAX) -> bytes:
        """A file's bytes. NotFound; GuestFault when it has more than ``limit``."""
        archive = Reader(self._engine.copy_out(self._id, self._inside(path)))
        for member in archive:
            if member.kind != REGULAR:
                raise Invalid(f"{path} is not a file", hint="a link is not followed; files.stat tells where it leads")
            if member.size > limit:
                raise GuestFault(f"{path} has {member.size} bytes, more than {limit}", hint="use files.copy_out")
            return b"".join(archive.pieces())
        raise NotFound(f"no such file in the box: {path}")

    def read_text(self, path: str, *, limit: int = READ_MAX) -> str:
        """A file's text; Invalid when it is not UTF-8."""
        try:
            return self.read(path, limit=limit).decode()
        except UnicodeDecodeError as error:
            raise Invalid(f"{path} is not UTF-8: {error}", hint="use files.read") from error

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644, user: int = 0, group: int = 0) -> None:
        """Create or replace a file; missing directories above it are made."""
        raw = content.encode() if isinstance(content, str) else content
        member = _member(REGULAR, self._inside(path), mode, user, group, len(raw))
        self._engine.copy_in(self._id, "/", (header(member), raw, padding(len(raw)), END), keep_owner=True)

    def mkdir(self, path: str, *, mode: int = 0o755, user: int = 0, group: int = 0) -> None:
        """Make a directory, and those above it; an existing one stays as it is."""
        if not self.exists(path):
            member = _member(DIRECTORY, self._inside(path), mode, user, group)
            self._engine.copy_in(self._id, "/", (header(member), END), keep_owner=True)

    def stat(self, path: str) -> Stat:
        """What a path names; a symbolic link is not followed. NotFound."""
        return _stat(self._engine.stat(self._id, self._inside(path)))

    def exists(self, path: str) -> bool:
        """Whether the path names something."""
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def list(self, path: str = ".") -> list[Stat]:
        """What a directory holds, by name."""
        found = (_stat(entry) for entry in self._engine.list_directory(self._id, self._inside(path)))
        return sorted(found, key=lambda entry: entry.name)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, an empty directory, or with ``recursive`` a whole tree."""
        self._engine.remove_path(self._id, self._inside(path), recursive=recursive)

    def copy_in(self, source: str | os.PathLike[str], destination: str) -> None:
        """Copy a file or tree of this machine into the directory ``destination``; owners become root."""
        from mamushka.storage import tree

        directory, name = os.path.split(os.path.abspath(source))
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.mkdir(destination)
            self._engine.copy_in(self._id, self._inside(destination), tree.pack(root, name))
        finally:
            os.close(root)

    def copy_out(self, source: str, destination: str | os.PathLike[str]) -> None:
        """Copy a file or tree of the box into the existing directory ``destination`` on this machine."""
        from mamushka.storage import tree

        root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            tree.unpack(root, "/", self._engine.copy_out(self._id, self._inside(source)))
        finally:
            os.close(root)

    def _inside(self, path: str) -> str:
        if not path:
            raise Invalid("the path is empty")
        return posixpath.normpath(path if path.startswith("/") else posixpath.join(self._working_directory(), path))


def _stat(seen: Mapping[str, object]) -> Stat:
    return Stat(
        name=str(seen["name"]),
        size=int(str(seen["size"])),
        mode=int(str(seen["mode"])),
        modified=float(str(seen["mtime"])),
        target=str(seen["link"]),
    )


def _member(kind: bytes, path: str, mode: int, user: int, group: int, size: int = 0) -> Member:
    name = os.fsencode(path.lstrip("/"))
    return Member(name, kind, mode, user, group, size=size, mtime_ns=time.time_ns())
