"""A layer's tar stream becomes a directory that overlayfs can stack.

The directory starts empty and nobody else can reach it (its parent is a staging directory of mode 0700), so
every directory in it is one that was made here. That is what keeps a hostile archive inside without a check
for each file: a member's parent is looked up among the directories made so far, by a path that has no link
in it; a link in the way is read and its target looked up from the layer's own root, however it was written.
The kernel is only ever given such a path, or a single name below one, and never follows the last name.

What the image-spec calls whiteouts (layer.md) takes overlayfs's form (overlayfs.rst): ``.wh.NAME`` becomes a
character device 0:0 called NAME, ``.wh..wh..opq`` the attribute trusted.overlay.opaque of its directory.
They speak of lower layers only: what the same layer holds under NAME stays, and a directory NAME is opaque.

Directories get their attributes last, when nothing is made in them any more. A later member of the same
name replaces an earlier one, as with tar.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Invalid
from mamushka.spec.tar import DIRECTORY, LINK, REGULAR, SYMLINK, Member, Reader
from mamushka.storage.make import Maker, is_whiteout
from mamushka.storage.remove import remove
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

WHITEOUT, OPAQUE_MARK = b".wh.", b".wh..wh..opq"
_HOPS = 40  # as many links as the kernel follows in one path
_OPEN_DIRECTORIES = 64  # of the 1024 descriptors that a process has by default, with layers side by side
# Parts of names that are looked up one by one because a link or an odd spelling is in the way, and directories
# that are replaced by something else: honest layers have few of both, and each costs time without costing bytes.
_STEPS = 16_000_000
_REPLACED = 1000
_SPLIT = "this was made to fill a disk, or its content should be spread over several layers"
_IMPLICIT = Member(b"", DIRECTORY, 0o755)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@value
class Limits:
    """What one layer may take. The largest layers in use hold a machine-learning model or a whole distribution."""

    size: int = 256 << 30  # bytes of the uncompressed archive
    entries: int = 2_000_000  # a directory takes some hundred bytes of memory while the layer is made
    names: int = 512 << 20  # bytes of all names and link targets


@value
class Content:
    """What was unpacked: bytes of file content, members, and directories that had no member of their own."""

    size: int
    entries: int
    implicit: tuple[bytes, ...] = ()


def apply(root: int, chunks: Iterable[bytes], *, limits: Limits | None = None, user_xattr: bool = False) -> Content:
    """Unpack a layer into the empty directory ``root``. Invalid when the archive is; then remove what is there.

    ``user_xattr`` writes user.overlay.opaque, for mounts made inside a user namespace.
    """
    limits = limits or Limits()
    layer = _Layer(root, limits, "user.overlay.opaque" if user_xattr else "trusted.overlay.opaque")
    try:
        return layer.unpack(Reader(_bounded(chunks, limits.size)))
    finally:
        layer.close()


def _bounded(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    rest = size
    for chunk in chunks:
        rest -= len(chunk)
        if rest < 0:
            raise Invalid(f"the layer has more than {size} bytes", hint=_SPLIT)
        yield chunk


class _Layer:
    """One layer that is being unpacked. Paths are relative to its root, without links; the root is ``b""``."""

    def __init__(self, root: int, limits: Limits, opaque_xattr: str) -> None:
        self._root = root
        self._limits = limits
        self._opaque_xattr = opaque_xattr
        self._directories: dict[bytes, Member] = {b"": _IMPLICIT}  # all that exist, with what they shall become
        self._opaque: set[bytes] = set()
        self._open: dict[bytes, int] = {b"": root}
        self._maker = Maker()
        self._steps = _STEPS
        self._replaced = _REPLACED

    def close(self) -> None:
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open.clear()

    def unpack(self, reader: Reader) -> Content:
        size = entries = names = 0
        for member in reader:
            size += member.stored
            entries += 1
            names += len(member.name) + len(member.link)
            if entries > self._limits.entries or names > self._limits.names:
                limit = f"{self._limits.entries} entries or {self._limits.names} bytes of names"
                raise Invalid(f"the layer has more than {limit}", hint=_SPLIT)
            parent, base = self._place(member.name)
            if base.startswith(WHITEOUT):
                self._whiteout(parent, base)
            elif member.kind == REGULAR:
                self._file(member, parent, base, reader.pieces())
            elif member.kind == DIRECTORY:
                self._directory(member, parent, base)
            elif not base:
                raise Invalid("the layer's root is not a directory")
            elif member.kind == LINK:
                self._hard_link(member, parent, base)
            else:
                make = self._maker.symlink if member.kind == SYMLINK else self._maker.node
                self._replacing(parent, base, lambda at: make(member, at, base))  # noqa: B023
        self._finish_directories()
        return Content(size, entries, tuple(path for path, made in self._directories.items() if made is _IMPLICIT))

    # names

    def _place(self, name: bytes) -> tuple[bytes, bytes]:
        """A member's parent directory, made where it is missing, and its last name; ("", "") is the root."""
        name = name.removeprefix(b"./")
        head, _, base = name.rpartition(b"/")
        if head in self._directories and base not in (b"", b".", b".."):
            return head, base
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise Invalid(f"the layer has a member {name[:200]!r}, which leads out of its root")
        if not parts:
            return b"", b""
        return self._resolve(parts[:-1]), parts[-1]

    def _resolve(self, parts: list[bytes]) -> bytes:
        """The directory that a path means when the layer is the whole world; missing ones are made."""
        here, pending, hops = b"", parts[::-1], 0
        while pending:
            part = pending.pop()
            self._steps -= 1
            if self._steps < 0:
                raise Invalid(f"the layer's links take more than {_STEPS} steps to follow")
            if part == b"..":
                here = here.rpartition(b"/")[0]
            elif part not in (b"", b"."):
                below = here + b"/" + part if here else part
                target = None if below in self._directories else self._link_or_make(below)
                if target is None:
                    here = below
                    continue
                hops += 1
                if hops > _HOPS:
                    raise Invalid(f"the layer has a member below {below!r}, a link that leads in circles")
                pending.extend(reversed(target.split(b"/")))
                here = b"" if target.startswith(b"/") else here
        return here

    def _link_or_make(self, path: bytes) -> bytes | None:
        """What the link at ``path`` says; None when there was nothing and now is a directory."""
        try:
            found = os.lstat(path, dir_fd=self._root)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISLNK(found.st_mode):
            return os.readlink(path, dir_fd=self._root)
        if found is not None and not is_whiteout(found):
            raise Invalid(f"the layer has members below {path!r}, which is not a directory")
        parent, _, base = path.rpartition(b"/")
        self._directory(_IMPLICIT, parent, base)
        return None

    def _at(self, path: bytes) -> int:
        """A descriptor of a directory, kept for the members that follow."""
        fd = self._open.get(path)
        if fd is None:
            if len(self._open) > _OPEN_DIRECTORIES:
                self.close()
                self._open[b""] = self._root
            fd = self._open[path] = os.open(path, _DIRECTORY, dir_fd=self._root)
        return fd

    # members

    def _file(self, member: Member, parent: bytes, base: bytes, pieces: Iterator[memoryview]) -> None:
        if not base:
            raise Invalid("the layer's root is not a directory")
        at = self._at(parent)
        try:
            self._maker.file(member, at, base, pieces)
        except FileExistsError:
            self._make_room(parent, base)
            self._maker.file(member, at, base, pieces)

    def _replacing(self, parent: bytes, base: bytes, make: Callable[[int], None]) -> None:
        at = self._at(parent)
        try:
            make(at)
        except FileExistsError:
            self._make_room(parent, base)
            make(at)

    def _directory(self, member: Member, parent: bytes, base: bytes) -> None:
        path = parent + b"/" + base if parent else base
        if path not in self._directories:
            at = self._at(parent)
            try:
                os.mkdir(base, 0o700, dir_fd=at)
            except FileExistsError:
                if self._make_room(parent, base):
                    self._opaque.add(path)
                os.mkdir(base, 0o700, dir_fd=at)
        self._directories[path] = member

    def _hard_link(self, member: Member, parent: bytes, base: bytes) -> None:
        source_parent, source = self._place(member.link)
        if (source_parent, source) == (parent, base):
            return
        path = source_parent + b"/" + source if source_parent else source
        try:
            if not source or is_whiteout(os.lstat(path, dir_fd=self._root)):
                raise FileNotFoundError
            self._replacing(
                parent,
                base,
                lambda at: os.link(path, base, src_dir_fd=self._root, dst_dir_fd=at, follow_symlinks=False),
            )
        except (FileNotFoundError, PermissionError) as error:
            raise Invalid(f"{member.name!r} is a hard link to {member.link!r}, no file of the same layer") from error

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == OPAQUE_MARK:
            self._opaque.add(parent)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden.startswith(WHITEOUT):  # .wh..wh.plnk and its like: aufs's own bookkeeping
            return
        if hidden in (b"", b".", b".."):
            raise Invalid(f"the layer has a whiteout {base!r} of no name")
        path = parent + b"/" + hidden if parent else hidden
        if path in self._directories:
            self._opaque.add(path)
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=self._at(parent))
        except FileExistsError:  # the layer's own file, which a whiteout does not mean
            pass

    def _make_room(self, parent: bytes, base: bytes) -> bool:
        """Remove what an earlier member put there; whether that was a whiteout."""
        path = parent + b"/" + base if parent else base
        at = self._at(parent)
        if path in self._directories:
            self._forget(path)
            remove(base, at=at)
            return False
        try:
            was_whiteout = is_whiteout(os.lstat(base, dir_fd=at))
        except FileNotFoundError:
            return False
        os.unlink(base, dir_fd=at)
        return was_whiteout

    def _forget(self, path: bytes) -> None:
        self._replaced -= 1
        if self._replaced < 0:
            raise Invalid(f"the layer replaces more than {_REPLACED} directories of its own")
        below = path + b"/"
        for gone in [other for other in self._directories if other == path or other.startswith(below)]:
            del self._directories[gone]
            self._opaque.discard(gone)
            if gone in self._open:
                os.close(self._open.pop(gone))

    def _finish_directories(self) -> None:
        for path, member in reversed(self._directories.items()):
            fd = os.open(path or b".", _DIRECTORY, dir_fd=self._root)
            try:
                self._maker.directory(member, fd)
                if path in self._opaque:
                    os.setxattr(fd, self._opaque_xattr, b"y")
            finally:
                os.close(fd)
