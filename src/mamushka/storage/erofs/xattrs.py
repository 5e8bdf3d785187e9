"""Extended attributes: what a layer's files have becomes what EROFS stores, inside an inode or shared by several.

The kernel's own notes and local labels stay behind (make.py, FOREIGN_XATTRS), with one exception: that a directory
is opaque. A layer that was unpacked inside a user namespace says that as user.overlay.opaque; in a machine root
mounts the overlay, and root reads trusted.overlay.opaque.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.storage.erofs.format import XATTR_ENTRY, XATTR_HEADER
from mamushka.storage.make import FOREIGN_XATTRS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The index stands for the name's beginning. erofs_fs.h: EROFS_XATTR_INDEX_*; the two lists' whole name is the index.
_WHOLE = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}
_PREFIXES = (("user.", 1), ("trusted.", 4), ("security.", 6))
_OPAQUE = "trusted.overlay.opaque"
# The length of a value has 16 bits; Linux lets one be a byte longer than that.
_VALUE_MAX = 0xFFFF
# What xattr_icount can say, in units of four bytes; Linux lists no more than 64 KiB of names per file.
_TOTAL_MAX = XATTR_HEADER.size + 4 * 0xFFFE
# h_shared_count has eight bits.
SHARED_MAX = 255


def entries(name: bytes, attributes: Mapping[str, bytes]) -> tuple[bytes, ...]:
    """What is stored of a file's attributes, sorted. Invalid, with the file's name, where the format has no room."""
    kept = {}
    for key, content in attributes.items():
        if key in (_OPAQUE, "user.overlay.opaque"):
            key = _OPAQUE
        elif key.startswith(FOREIGN_XATTRS):
            continue
        index, rest = _split(key)
        if not index:  # of a namespace that only the file system below knows
            continue
        if len(content) > _VALUE_MAX:
            raise Invalid(
                f"{name!r} has an attribute {key!r} of {len(content)} bytes: at most {_VALUE_MAX} fit into EROFS"
            )
        entry = XATTR_ENTRY.pack(len(rest), index, len(content)) + rest + content
        kept[key] = entry + bytes(-len(entry) % 4)
    if sum(map(len, kept.values())) > _TOTAL_MAX - XATTR_HEADER.size:
        raise Invalid(f"{name!r} has more than {_TOTAL_MAX} bytes of extended attributes: no more fit into EROFS")
    return tuple(kept[key] for key in sorted(kept))


def _split(key: str) -> tuple[int, bytes]:
    if key in _WHOLE:
        return _WHOLE[key], b""
    for prefix, index in _PREFIXES:
        if key.startswith(prefix):
            return index, key[len(prefix) :].encode("utf-8", "surrogateescape")
    return 0, b""


class Shared:
    """The entries that more than one inode has, once each, in a part of the image of their own."""

    def __init__(self, sets: Iterable[tuple[bytes, ...]]) -> None:
        seen: dict[bytes, int] = {}
        for each in sets:
            for entry in each:
                seen[entry] = seen.get(entry, 0) + 1
        self.area = bytearray()
        self._ids: dict[bytes, int] = {}
        for entry, count in seen.items():
            if count > 1:
                self._ids[entry] = len(self.area) // 4
                self.area += entry

    def body(self, own: tuple[bytes, ...]) -> bytes:
        """What follows an inode that has these entries; nothing where it has none."""
        if not own:
            return b""
        ids = [self._ids[entry] for entry in own if entry in self._ids][:SHARED_MAX]
        told = set(ids)
        inline = [entry for entry in own if self._ids.get(entry) not in told]
        return XATTR_HEADER.pack(len(ids)) + b"".join(id.to_bytes(4, "little") for id in ids) + b"".join(inline)
