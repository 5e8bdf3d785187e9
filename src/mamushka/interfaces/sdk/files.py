"""A box's files, read and written from outside; the box may run or not, and needs no program for it."""

from __future__ import annotations

import io
import posixpath
import stat as modes
import tarfile
import time

from mamushka.errors import Conflict, GuestFault, Invalid, NotFound
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from _typeshed import WriteableBuffer

    from mamushka.engine.engine import Engine

# What ``read`` returns stays in memory; a box can make a file of any size in no time.
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
        reader = io.BufferedReader(_Chunks(self._engine.copy_out(self._id, self._inside(path))))
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise Invalid(f"{path} is not a file")
                if member.size > limit:
                    raise GuestFault(f"{path} has {member.size} bytes, more than {limit}")
                return content.read()
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
        place = self._inside(path)
        self._make_directories(posixpath.dirname(place))
        member = _member(posixpath.basename(place), mode, user, group)
        member.size = len(raw)
        self._engine.copy_in(self._id, posixpath.dirname(place), _archive(member, raw), keep_owner=True)

    def mkdir(self, path: str, *, mode: int = 0o755, user: int = 0, group: int = 0) -> None:
        """Make a directory, and those above it; an existing one stays as it is."""
        self._make_directories(self._inside(path), mode, user, group)

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

    def _inside(self, path: str) -> str:
        if not path:
            raise Invalid("the path is empty")
        return posixpath.normpath(path if path.startswith("/") else posixpath.join(self._working_directory(), path))

    def _make_directories(self, path: str, mode: int = 0o755, user: int = 0, group: int = 0) -> None:
        """Make what is missing of a path, from the top; links on the way are followed inside the box."""
        done = "/"
        for part in path.strip("/").split("/") if path != "/" else ():
            above, done = done, posixpath.join(done, part)
            if not self.exists(done):
                member = _member(part, mode, user, group, tarfile.DIRTYPE)
                self._engine.copy_in(self._id, above, _archive(member), keep_owner=True)
            elif self.stat(done).is_file:
                raise Conflict(f"cannot make the directory {path}: {done} is a file")


def _stat(seen: Mapping[str, object]) -> Stat:
    return Stat(
        name=str(seen["name"]),
        size=int(str(seen["size"])),
        mode=int(str(seen["mode"])),
        modified=float(str(seen["mtime"])),
        target=str(seen.get("target") or ""),
    )


def _member(name: str, mode: int, user: int, group: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid, member.type, member.mtime = mode, user, group, kind, time.time()
    return member


def _archive(member: tarfile.TarInfo, content: bytes = b"") -> Iterator[bytes]:
    yield member.tobuf(tarfile.PAX_FORMAT)
    yield content
    yield b"\0" * (-len(content) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a raw file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._rest:
            piece = next(self._chunks, None)
            if piece is None:
                return 0
            self._rest = bytes(piece)
        view = memoryview(buffer)
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)
