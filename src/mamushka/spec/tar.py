"""The tar format, read as a stream: bytes in, members and their data out. No I/O.

    reader = Reader(chunks)
    for member in reader:
        for piece in reader.pieces(): ...

Layers come from strangers and from every tool of forty years, so the dialects are: V7, POSIX ustar, pax
(pax(1), "pax Header Block"; global and extended headers, SCHILY.xattr and LIBARCHIVE.xattr), GNU (long names
and links, base-256 numbers) and the four sparse forms (GNU tar manual, "Sparse Formats": old GNU, pax 0.0,
0.1 and 1.0). Whatever the bytes are, they are read or Invalid is raised; how they were cut into chunks
makes no difference. Data behind the two zero blocks that end an archive is drained and not looked at.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes
from zlib import adler32

from mamushka.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REGULAR, LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

RECORD = 512
# Names longer than the kernel's PATH_MAX can be given to no call.
NAME_MAX = 4095
# What tells about a member (pax records, long names, sparse maps) stays small; Go's reader, which most of
# the world's layers have passed, has the same bound.
EXTENSION_MAX = 1 << 20
# Every member pays for them again; what writes them (git, pax -o) writes a comment or an owner.
_GLOBALS_MAX = 4096
# The largest file that ext4 can hold; a sparse map may claim anything.
FILE_MAX = 16 << 40
# Seconds, 35,000 years either way. File systems clamp what they cannot keep; what tar's octal can say fits.
TIME_MAX = 1 << 40

# Size, checksum and type are read before; what the user and group were called there means nothing here.
_HEADER = Struct("100s8s8s8s12x12s8xx100s6s2x32x32x8s8s155s12x")
_GNU_SPARSE = Struct("12s12s")
_ZERO = bytes(RECORD)
_HEADER_ONLY = (LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO)
_EXTENDED = (b"x", b"X", b"g", b"L", b"K")
_EMPTY = memoryview(b"")


class Member(NamedTuple):
    """One entry of an archive; names are bytes as they stand there, without a directory's final slash."""

    name: bytes
    kind: bytes = REGULAR
    mode: int = 0o644  # permission bits with setuid, setgid and sticky
    uid: int = 0
    gid: int = 0
    size: int = 0  # of the file when unpacked; only REGULAR members have data
    mtime_ns: int = 0
    link: bytes = b""  # what a symbolic link says, or the name a hard link shares
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    sparse: tuple[tuple[int, int], ...] | None = None  # (offset, length) of each piece that has data
    stored: int = 0  # bytes of data in the archive


class Reader:
    """The members of one archive in order. Data that was not taken is skipped; the end drains ``chunks``."""

    def __init__(self, chunks: Iterable[bytes | memoryview]) -> None:
        self._chunks = iter(chunks)
        self._view = _EMPTY
        self._position = 0
        self._unread = 0  # of the present member's data
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        return self

    def __next__(self) -> Member:
        if self._unread or self._padding:
            for _ in self.pieces():
                pass
        records: dict[bytes, bytes] = {}
        sparse: list[bytes] = []
        long_name = long_link = None
        while True:
            block = self._block()
            kind = block[156:157]
            if kind not in _EXTENDED:
                break
            size = _header_size(block)
            if size > EXTENSION_MAX:
                raise Invalid(f"an extended header of {size} bytes, more than the {EXTENSION_MAX} that are allowed")
            body = self._take(size)
            self._take(-size % RECORD)
            if kind == b"L":
                long_name = body.partition(b"\0")[0]
            elif kind == b"K":
                long_link = body.partition(b"\0")[0]
            elif kind == b"g":
                self._globals.update(_pax(body, []))
                if sum(map(len, (*self._globals, *self._globals.values()))) > _GLOBALS_MAX:
                    raise Invalid(f"global records of more than {_GLOBALS_MAX} bytes")
            else:
                sparse.clear()
                records = _pax(body, sparse)
        if self._globals or b"" in records.values():
            merged = {**self._globals, **records}
            # An empty record takes back what an earlier one said; an attribute may well be empty.
            records = {key: item for key, item in merged.items() if item or b".xattr." in key}
        return self._member(block, kind, records, sparse, long_name, long_link)

    def pieces(self) -> Iterator[memoryview]:
        """The present member's data; a view is valid until the next one is asked for."""
        while self._unread:
            rest = len(self._view) - self._position
            if not rest:
                self._fill("a member's data")
                continue
            start = self._position
            length = rest if rest < self._unread else self._unread
            self._position = start + length
            self._unread -= length
            yield self._view[start : self._position]
        if self._padding:
            padding, self._padding = self._padding, 0
            if self._position + padding <= len(self._view):
                self._position += padding
            else:
                self._take(padding)

    # below: bytes, then headers

    def _more(self) -> bool:
        """Whether there was another chunk; it takes the place of the one that was used up."""
        for chunk in self._chunks:
            if chunk:
                self._view = memoryview(chunk)
                self._position = 0
                return True
        return False

    def _fill(self, what: str) -> None:
        if not self._more():
            raise Invalid(f"the archive is cut off within {what}")

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if end <= len(self._view):
            taken = bytes(self._view[self._position : end])
            self._position = end
            return taken
        parts = [bytes(self._view[self._position :])]
        missing = length - len(parts[0])
        while missing:
            self._position = len(self._view)
            self._fill("a header")
            parts.append(bytes(self._view[:missing]))
            self._position = len(parts[-1])
            missing -= self._position
        return b"".join(parts)

    def _block(self) -> bytes:
        if self._position == len(self._view) and not self._more():
            raise StopIteration  # without an end marker: some writers leave it out; a digest tells what is cut
        block = self._take(RECORD)
        if block == _ZERO:
            self._end()
        return block

    def _end(self) -> None:
        if self._position < len(self._view) or self._more():
            if self._take(RECORD) != _ZERO:
                raise Invalid("a single zero block with more members behind it")
            self._position = len(self._view)
            while self._more():
                self._position = len(self._view)
        raise StopIteration

    def _member(
        self,
        block: bytes,
        kind: bytes,
        records: dict[bytes, bytes],
        sparse_records: list[bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        name, mode, uid, gid, mtime, link, magic, major, minor, prefix = _HEADER.unpack(block)
        size = _header_size(block)
        name = name.partition(b"\0")[0]
        if magic == b"ustar\0" and prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
        if long_name is not None:
            name = long_name
        link = link.partition(b"\0")[0] if long_link is None else long_link
        owner, group, mtime_ns = _number(uid), _number(gid), _number(mtime) * 1_000_000_000
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if records:
            name, link = records.get(b"path", name), records.get(b"linkpath", link)
            owner = _decimal(records[b"uid"], "uid") if b"uid" in records else owner
            group = _decimal(records[b"gid"], "gid") if b"gid" in records else group
            size = _decimal(records[b"size"], "size") if b"size" in records else size
            mtime_ns = _nanoseconds(records[b"mtime"]) if b"mtime" in records else mtime_ns
            xattrs = _xattrs(records)
        if kind not in _HEADER_ONLY:
            kind = self._data_kind(kind, name, size)
        stored = size if kind == REGULAR else 0
        segments = None
        if kind == REGULAR and (block[156] == 83 or sparse_records or any(r.startswith(b"GNU.sp") for r in records)):
            name, size, stored, segments = self._sparse(block, records, sparse_records, name, size)
        device = (_number(major), _number(minor)) if kind in (CHARACTER, BLOCK) else (0, 0)
        name = name.rstrip(b"/") or name[:1]
        _check(name, link, size, owner, group, mtime_ns)
        self._unread, self._padding = stored, -stored % RECORD
        size = size if kind == REGULAR else 0
        return Member(
            name, kind, _number(mode) & 0o7777, owner, group, size, mtime_ns, link, *device, xattrs, segments, stored
        )

    @staticmethod
    def _data_kind(kind: bytes, name: bytes, size: int) -> bytes:
        if kind in (b"0", b"\0", b"7") and name.endswith(b"/"):  # V7 knew directories only by their final slash
            if size:  # readers differ on whether data follows: what they would find may differ, too
                raise Invalid(f"{name[:80]!r} is a directory with {size} bytes of data")
            return DIRECTORY
        if kind in (b"0", b"\0", b"7"):
            return REGULAR
        if kind == b"S":
            return REGULAR
        raise Invalid(f"{name!r} has the member type {kind!r}, which no layer may have")

    def _sparse(
        self, block: bytes, records: dict[bytes, bytes], listed: list[bytes], name: bytes, size: int
    ) -> tuple[bytes, int, int, tuple[tuple[int, int], ...] | None]:
        """(name, size unpacked, size stored, segments): whichever of the four forms it is."""
        name = records.get(b"GNU.sparse.name", name)
        if records.get(b"GNU.sparse.major") == b"1":
            real = _decimal(records.get(b"GNU.sparse.realsize", b""), "GNU.sparse.realsize")
            numbers, used = self._sparse_map(size)
            stored = size - used
        elif block[156:157] == b"S":
            real, numbers = self._old_gnu(block)
            stored = size
        else:
            real = _decimal(records.get(b"GNU.sparse.size", b"%d" % size), "GNU.sparse.size")
            texts = records[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in records else listed
            numbers = [_decimal(text, "a sparse map") for text in texts]
            stored = size
        return name, real, stored, _segments(numbers, real, stored)

    def _sparse_map(self, stored: int) -> tuple[list[int], int]:
        """Pax 1.0: decimal numbers, a line each, count first, in front of the data, padded to a block."""
        numbers: list[int] = []
        tail, used = b"", 0
        while not numbers or len(numbers) <= 2 * numbers[0]:
            if used + RECORD > min(stored, EXTENSION_MAX) or len(tail) > 20:
                raise Invalid("a sparse map that does not end")
            *lines, tail = (tail + self._take(RECORD)).split(b"\n")
            used += RECORD
            for line in lines:
                if numbers and len(numbers) > 2 * numbers[0]:
                    break
                numbers.append(_decimal(line, "a sparse map"))
        return numbers[1:], used

    def _old_gnu(self, block: bytes) -> tuple[int, list[int]]:
        real = _number(block[483:495])
        entries, extended = block[386:482], block[482]
        numbers: list[int] = []
        while True:
            for offset, length in _GNU_SPARSE.iter_unpack(entries):
                if not offset.strip(b" \0"):
                    break
                numbers += (_number(offset), _number(length))
            if not extended:
                return real, numbers
            if len(numbers) * 12 > EXTENSION_MAX:
                raise Invalid("a sparse map that does not end")
            block = self._take(RECORD)
            entries, extended = block[:504], block[504]


def _header_size(block: bytes) -> int:
    """The size field of a block whose checksum is right."""
    # The sum of all bytes, the checksum's own eight taken as spaces. adler32 starts at 1 and keeps the sum
    # modulo 65521 in its low half: the same test thirty times faster than a loop over 512 bytes.
    expected = _number(block[148:156])
    difference = (adler32(block) & 0xFFFF) - 1 + 8 * 32 - sum(block[148:156]) - expected
    if difference % 65521 and expected != _signed_sum(block):
        raise Invalid("not a tar header: the checksum is wrong")
    size = _number(block[124:136])
    if size < 0:
        raise Invalid(f"a tar header with a size of {size} bytes")
    return size


def _signed_sum(block: bytes) -> int:
    """What some old writers computed with signed characters."""
    return sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32


@lru_cache(8192)
def _number(field: bytes) -> int:
    """Octal text, or base 256 in big-endian two's complement when the first bit is set (GNU, star)."""
    first = field[0]
    if first & 0x80:
        number = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
        return number - (1 << 8 * len(field) - 1) if first & 0x40 else number
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        if not digits.isdigit():
            raise ValueError
        return int(digits, 8)
    except ValueError:
        raise Invalid(f"{field!r} in a tar header is not an octal number") from None


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Invalid(f"{text[:40]!r} is no {what}")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """Seconds with a fraction of any length, kept to the nanosecond and rounded down."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole[negative:] or b"0", "mtime")
    if fraction and not fraction.isdigit():
        raise Invalid(f"{text[:40]!r} is no mtime")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    return -(seconds * 10**9 + nanoseconds) if negative else seconds * 10**9 + nanoseconds


def _pax(body: bytes, sparse: list[bytes]) -> dict[bytes, bytes]:
    """Records "length key=value\\n"; the one key that may repeat (pax 0.0 sparse) is collected in order."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 21)
        length = _decimal(body[position:space], "length of a pax record") if space > 0 else 0
        end = position + length
        key, equals, item = body[space + 1 : end - 1].partition(b"=")
        if length < 5 or end > len(body) or body[end - 1] != 10 or not equals or not key:
            raise Invalid(f"a pax record at byte {position} of its header is broken")
        if key == b"GNU.sparse.offset" or key == b"GNU.sparse.numbytes":
            sparse.append(item)
        else:
            records[key] = item
        position = end
    return records


def _xattrs(records: dict[bytes, bytes]) -> tuple[tuple[str, bytes], ...]:
    found: dict[str, bytes] = {}
    for key, item in records.items():
        if key.startswith(b"SCHILY.xattr."):
            found[_text(key[13:])] = item
        elif key.startswith(b"LIBARCHIVE.xattr."):
            found.setdefault(_text(unquote_to_bytes(key[17:])), _base64(item))
    return tuple(sorted(found.items()))


def _text(name: bytes) -> str:
    # VFS: XATTR_NAME_MAX is 255
    if not 0 < len(name) <= 255 or b"\0" in name:
        raise Invalid(f"{name[:40]!r} is no name of an extended attribute")
    return name.decode("utf-8", "surrogateescape")


def _base64(text: bytes) -> bytes:
    from binascii import Error, a2b_base64

    try:
        return a2b_base64(text + b"=" * (-len(text) % 4))
    except Error as error:
        raise Invalid(f"an extended attribute is not base64: {error}") from error


def _segments(numbers: list[int], real: int, stored: int) -> tuple[tuple[int, int], ...]:
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    previous = total = 0
    for offset, length in segments:
        if length < 0 or offset < previous:
            raise Invalid("a sparse map whose pieces overlap or run backwards")
        previous = offset + length
        total += length
    if len(numbers) % 2 or previous > real or total != stored:
        raise Invalid(f"a sparse map of {total} bytes up to {previous} for {stored} bytes of a file of {real}")
    return segments


def _check(name: bytes, link: bytes, size: int, uid: int, gid: int, mtime_ns: int) -> None:
    if not name or len(name) > NAME_MAX or len(link) > NAME_MAX:
        raise Invalid(f"a member's name of {len(name)} and link of {len(link)} bytes: 1 to {NAME_MAX} are allowed")
    if b"\0" in name or b"\0" in link:
        raise Invalid(f"{name[:80]!r}: a name with a zero byte in it")
    if not 0 <= size <= FILE_MAX:
        raise Invalid(f"{name[:80]!r} claims {size} bytes, more than any file system holds")
    # -1 (all bits set) means "leave as it is" to chown
    if not (0 <= uid < 0xFFFFFFFF and 0 <= gid < 0xFFFFFFFF):
        raise Invalid(f"{name[:80]!r} belongs to {uid}:{gid}, which are no ids")
    if not -TIME_MAX <= mtime_ns // 10**9 <= TIME_MAX:
        raise Invalid(f"{name[:80]!r} has a time of {mtime_ns} ns, which no clock shows")
