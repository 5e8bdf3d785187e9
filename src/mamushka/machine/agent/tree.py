"""Trees as streams of fields, without I/O: what a guest packs becomes entries, what it is to unpack is made of members.

guest/tree.c writes and reads the same. The guest is hostile: names lead nowhere but below, sizes add up, and whatever
else comes is a GuestFault, the same in pieces as at once. How much comes is the business of who asked for it.
"""

from __future__ import annotations

import stat
from struct import Struct

from mamushka.errors import GuestFault, Invalid
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import Fields, group, number, raw
from mamushka.spec.tar import BLOCK, CHARACTER, DIRECTORY, FIFO, LINK, NAME_MAX, REGULAR, SYMLINK, Member
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FIELD = Struct("<HI")
# A path, a link, and extended attributes of 64 KiB; of content 64 KiB at a time (guest/tree.c).
FIELD_MAX = 256 << 10
_PIECE = 64 << 10
# What the largest file system of Linux's has of files that can be one under several names, at a few bytes each here.
_LINKS_MAX = 1 << 20
_SIZE_MAX = 1 << 62
_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
    stat.S_IFIFO: FIFO,
}
_TYPES = {kind: type for type, kind in _KINDS.items()}


@value
class Entry:
    """A file of a guest's. ``same`` is equal for all names of one file; empty where there is one alone."""

    name: bytes  # below what was asked for; empty for that itself
    mode: int  # st_mode
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int  # major << 32 | minor
    link: bytes
    same: tuple[int, int] | tuple[()]
    xattrs: tuple[tuple[str, bytes], ...]


class Unpacker:
    """Entries of a stream and the content that follows each: ``Entry | bytes``, in order."""

    def __init__(self, *, content: bool = True) -> None:
        """``content``: whether it was asked for."""
        self._left = bytearray()
        self._content = content
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[Entry | bytes]:
        """What is whole by now."""
        self._left += data
        while len(self._left) >= _FIELD.size:
            key, size = _FIELD.unpack_from(self._left)
            if size > FIELD_MAX:
                raise GuestFault(f"the guest's agent sent {size} bytes of a tree at once, the most is {FIELD_MAX}")
            end = _FIELD.size + size
            if len(self._left) < end:
                return
            body = bytes(self._left[_FIELD.size : end])
            del self._left[:end]
            yield self._take(key, body)

    def end(self) -> None:
        """Nothing more comes. GuestFault where something is missing."""
        if self._left or self._missing:
            raise GuestFault(
                f"the guest's agent sent {self._missing or len(self._left)} bytes of a tree too few or much"
            )

    def _take(self, key: int, body: bytes) -> Entry | bytes:
        if key == words.K_DATA:
            if not 0 < len(body) <= self._missing:
                raise GuestFault(f"the guest's agent sent {len(body)} bytes of a file that has {self._missing} more")
            self._missing -= len(body)
            return body
        if key != words.K_ITEM or self._missing:
            raise GuestFault(f"the guest's agent sent field {key} with {self._missing} bytes of a file missing")
        found = _entry(Fields(body, 1))
        if self._content and stat.S_ISREG(found.mode):
            self._missing = found.size
        return found


def _entry(fields: Fields) -> Entry:
    name = fields.get(words.K_NAME) or b""
    if len(name) > NAME_MAX or (name and any(part in (b"", b".", b"..") for part in name.split(b"/"))):
        raise GuestFault(f"the guest's agent sent a file called {name[:200]!r}")
    size, when = fields.number(words.K_SIZE), fields.number(words.K_MTIME)
    if size > _SIZE_MAX:
        raise GuestFault(f"the guest's agent sent a file of {size} bytes")
    return Entry(
        name,
        fields.number(words.K_MODE) & 0o177777,
        fields.number(words.K_UID) & 0xFFFFFFFF,
        fields.number(words.K_GID) & 0xFFFFFFFF,
        size,
        when - (1 << 64) if when >> 63 else when,
        fields.number(words.K_DEVICE),
        fields.get(words.K_SOURCE) or b"",
        (fields.number(words.K_FILESYSTEM), fields.number(words.K_INODE)) if fields.get(words.K_INODE) else (),
        tuple((item.text(words.K_NAME), item.get(words.K_DATA) or b"") for item in fields.groups(words.K_FILE)),
    )


class Names:
    """The first names of files that have several."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], bytes] = {}

    def first(self, entry: Entry, name: bytes) -> bytes:
        """What the file was called before; empty where this is its first name."""
        if not entry.same:
            return b""
        if len(self._first) >= _LINKS_MAX:
            raise GuestFault(f"the guest's agent sent more than {_LINKS_MAX} files with several names")
        found = self._first.setdefault(entry.same, name)
        return found if found != name else b""


def member(entry: Entry, name: bytes, first: bytes = b"", *, foreign: tuple[str, ...] = ()) -> Member | None:
    """As a tar has it; ``first`` makes it another name of that. None for a socket, which no tar has.

    Attributes that begin with one of ``foreign`` are left out.
    """
    kind = LINK if first else _KINDS.get(stat.S_IFMT(entry.mode))
    if kind is None:
        return None
    xattrs = (
        tuple(sorted(item for item in entry.xattrs if not item[0].startswith(foreign))) if foreign else entry.xattrs
    )
    return Member(
        name, kind, entry.mode & 0o7777, entry.uid, entry.gid,
        entry.size if kind == REGULAR else 0, entry.mtime_ns, first or (entry.link if kind == SYMLINK else b""),
        entry.device >> 32, entry.device & 0xFFFFFFFF, () if first else xattrs,
    )  # fmt: skip


def item(given: Member) -> bytes:
    """A member as the guest is told of it; content follows in ``pieces``. Invalid for one that no guest takes."""
    fields = [
        raw(words.K_NAME, given.name),
        number(words.K_MODE, _TYPES.get(given.kind, stat.S_IFREG) | given.mode & 0o7777),
        number(words.K_UID, given.uid),
        number(words.K_GID, given.gid),
        number(words.K_MTIME, max(given.mtime_ns, 0)),
    ]
    if given.kind == REGULAR:
        fields.append(number(words.K_SIZE, given.size))
    elif given.kind == LINK:
        fields.append(raw(words.K_TARGET, given.link))
    elif given.kind == SYMLINK:
        fields.append(raw(words.K_SOURCE, given.link))
    elif given.kind in (CHARACTER, BLOCK):
        fields.append(number(words.K_DEVICE, given.major << 32 | given.minor))
    for name, content in given.xattrs:
        fields.append(group(words.K_FILE, raw(words.K_NAME, name.encode()), raw(words.K_DATA, content)))
    found = group(words.K_ITEM, *fields)
    if len(found) > FIELD_MAX:
        raise Invalid(f"what is said of {given.name[:200]!r} has {len(found)} bytes, the most is {FIELD_MAX}")
    return found


def pieces(content: Iterable[memoryview | bytes]) -> Iterator[bytes]:
    """A file's content as the guest is given it."""
    for part in content:
        for start in range(0, len(part), _PIECE):
            yield raw(words.K_DATA, bytes(part[start : start + _PIECE]))
