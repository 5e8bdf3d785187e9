"""A reader of EROFS directories by the words of fs/erofs, for tests where no kernel is asked."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def names_of(raw: bytes, nid: int) -> Iterator[tuple[bytes, int, int]]:
    """A directory's entries, straight from fs/erofs/dir.c."""
    form, count, _, _, size, start = struct.unpack_from("<HHHHQI", raw, nid * 32)
    body = nid * 32 + 64 + (12 + 4 * (count - 1) if count else 0)
    for first in range(0, size, 4096):
        last = min(size - first, 4096)
        inline = form >> 1 == 2 and size - first < 4096
        block = raw[body : body + last] if inline else raw[start * 4096 + first :][:last]
        entries = [struct.unpack_from("<QHB", block, at) for at in range(0, struct.unpack_from("<QH", block)[1], 12)]
        for number, (child, offset, kind) in enumerate(entries):
            end = entries[number + 1][1] if number + 1 < len(entries) else last
            yield block[offset:end].rstrip(b"\0"), child, kind


def paths_of(raw: bytes) -> dict[bytes, int]:
    """Every path in an image with its file type, from the root that the superblock names."""
    found: dict[bytes, int] = {}
    pending = [(b"", struct.unpack_from("<H", raw, 1024 + 14)[0])]
    while pending:
        above, nid = pending.pop()
        for name, child, kind in names_of(raw, nid):
            if name not in (b".", b".."):
                found[above + name] = kind
                if kind == 2:
                    pending.append((above + name + b"/", child))
    return found
