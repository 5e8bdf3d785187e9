"""The guest's first file system: an archive in the format newc, which Linux unpacks before its first process.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Several archives one after the other are unpacked
over each other, so what all machines share is built once and what is one machine's own is appended to it.
"""

from __future__ import annotations

import stat

from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# A name and a file's length are eight hexadecimal digits each in a header; the kernel takes names up to PATH_MAX.
_NAME_MAX, _CONTENT_MAX = 4095, 0xFFFF_FFFF
_TRAILER = "TRAILER!!!"


@value
class Member:
    """A file, directory, link or device. ``mode`` has the type's bits; a symbolic link's content is its target."""

    name: str
    mode: int = stat.S_IFREG | 0o644
    content: bytes | memoryview = b""
    device: tuple[int, int] = (0, 0)


def program(name: str, content: bytes | memoryview) -> Member:
    """A file that may be executed."""
    return Member(name, stat.S_IFREG | 0o755, content)


def link(name: str, target: str) -> Member:
    """A symbolic link."""
    return Member(name, stat.S_IFLNK | 0o777, target.encode())


def archive(members: Iterable[Member]) -> bytes:
    """An archive of these, in their order; directories above them that are not among them come by themselves."""
    parts: list[bytes | memoryview] = []
    known: set[str] = set()
    for number, member in enumerate(_with_parents(members, known), 1):
        _add(parts, number, member)
    _add(parts, 0, Member(_TRAILER, 0))
    return b"".join(parts)


def _with_parents(members: Iterable[Member], known: set[str]) -> Iterable[Member]:
    for member in members:
        steps = member.name.split("/")
        if any(step in ("", ".", "..") for step in steps):
            raise Invalid(f"{member.name!r} is no name in an archive: it must be relative, without . and ..")
        for depth in range(1, len(steps)):
            above = "/".join(steps[:depth])
            if above not in known:
                known.add(above)
                yield Member(above, stat.S_IFDIR | 0o755)
        known.add(member.name)
        yield member


def _add(parts: list[bytes | memoryview], number: int, member: Member) -> None:
    """A header of thirteen numbers in eight hexadecimal digits each, the name, the content; each padded to four."""
    raw = member.name.encode() + b"\0"
    if len(raw) > _NAME_MAX or raw.count(b"\0") > 1:
        raise Invalid(f"{member.name[:64]!r}… is no name in an archive: too long, or with a NUL in it")
    length = len(member.content)
    if length > _CONTENT_MAX:
        raise Invalid(f"{member.name} has {length} bytes: an archive takes files of less than 4 GiB")
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (number, member.mode, 0, 0, links, 0, length, 0, 0, *member.device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    parts += (head + bytes(-len(head) % 4), member.content, bytes(-length % 4))
