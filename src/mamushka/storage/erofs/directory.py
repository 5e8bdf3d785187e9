"""The content of a directory: blocks, each with its entries first and their names behind them.

The kernel looks a name up by two binary searches, over the blocks and inside one; so all names are in the order of
their bytes, ``.`` and ``..`` among them. fs/erofs/namei.c.
"""

from __future__ import annotations

from mamushka.storage.erofs.format import BLOCK, DIRENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Entry = tuple[bytes, int, int]  # name, nid, file type


def split(names: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """How many of the sorted names each block takes, and the bytes they take of it."""
    count = used = 0
    for name in names:
        more = DIRENT.size + len(name)
        if used + more > BLOCK:
            yield count, used
            count = used = 0
        count += 1
        used += more
    if count:
        yield count, used


def size(names: Iterable[bytes]) -> int:
    """Bytes of the directory: all blocks but the last are whole."""
    blocks, last = 0, 0
    for _, used in split(names):
        blocks, last = blocks + 1, used
    return (blocks - 1) * BLOCK + last


def content(entries: Sequence[Entry]) -> bytes:
    """The directory of sorted entries, ``size`` bytes."""
    blocks = []
    first = 0
    for count, _ in split(name for name, _, _ in entries):
        block = entries[first : first + count]
        first += count
        heads, names, offset = [], [], count * DIRENT.size
        for name, nid, kind in block:
            heads.append(DIRENT.pack(nid, offset, kind))
            names.append(name)
            offset += len(name)
        blocks.append(b"".join(heads + names))
    return b"".join([block.ljust(BLOCK, b"\0") for block in blocks[:-1]] + blocks[-1:])
