"""Where everything lies. Sizes are all known after the scan, so each place is decided before a byte is written.

    block 0     superblock
    from 1      inodes, each with its attributes and, where it is short, the end of its data (the root comes first)
                the shared attributes
                whole blocks of directories, and links that fill nearly one
                files

How the data of an inode lies decides how a machine reads it. With DAX only *plain* and *chunk-based* files are mapped
right from the host's page cache; *inline* data is copied into the guest's own. So files are plain, with two exceptions:

- a file of up to half a block lies behind its inode: the block that a lookup reads anyway has it, and a plain one
  would leave more than half a block empty, on the disk and in each guest's address space;
- a file of which an eighth and at least 64 KiB are holes is chunk-based, and its holes take no place.

A file of 16 MiB and more begins at a multiple of 2 MiB, and so does the image in a machine: where a program maps it at
such an address, one entry of the guest's page tables maps 2 MiB. Reading 24 MiB takes 13 faults then, not 6145. Below
that size the bytes left out in front of a file would be many for what they save.

Links are inline and directories keep a short end inline: both are read through the guest's cache in any case.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Invalid
from mamushka.linux.fallocate import data
from mamushka.storage.erofs.format import (
    BLOCK,
    BLOCKS_MAX,
    CHUNKS,
    INLINE,
    INODE_SIZE,
    PLAIN,
    SLOT,
    encoded_device,
)
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mamushka.storage.erofs.scan import Directory, Node
    from mamushka.storage.erofs.xattrs import Shared

_INLINE_MAX = BLOCK // 2
_HOLES_MIN = 64 << 10
# A file's table of chunks takes four bytes each; more would only make the inodes sparse.
_CHUNKS_MAX = 4096
# What one entry of a guest's page directory maps at once, and from which size on files are aligned to it.
HUGE, _HUGE_MIN = 2 << 20, 16 << 20


@value
class Plan:
    """The parts of an image, in blocks from its beginning; ``end`` is the first block behind it."""

    inodes: int
    shared: int
    end: int
    chunks: bool


def emitted(root: Node, directories: Sequence[Directory]) -> Iterator[Node]:
    """All inodes in the image's order."""
    yield root
    for here in directories:
        for _, node in here.entries:
            yield node


def plan(directories: Sequence[Directory], shared: Shared, holes: Callable[[Directory, bytes], int]) -> Plan:
    """Give every node its nid and the place of its data; ``holes`` opens a file that may have some."""
    root = directories[0].node
    _find_holes(directories, holes)
    position, number = BLOCK, 0
    for node in emitted(root, directories):
        number += 1
        node.number = number & 0xFFFFFFFF  # for 32-bit programs; the kernel's inode number is the nid
        body = INODE_SIZE + len(shared.body(node.attributes))
        node.layout, tail = _choose(node, body)
        head = min(body, INODE_SIZE) if node.layout != INLINE else body + tail
        if position % BLOCK + head > BLOCK:  # neither an inode nor inline data crosses into the next block
            position += -position % BLOCK
        node.nid = position // SLOT
        position += body + tail
        position += -position % SLOT
    first_shared = _blocks(position)
    block = first_shared + _blocks(len(shared.area))
    for node in emitted(root, directories):
        if stat.S_ISDIR(node.mode) or stat.S_ISLNK(node.mode):
            node.start = block
            block += node.size // BLOCK if node.layout == INLINE else _blocks(node.size)
    for node in emitted(root, directories):
        if stat.S_ISREG(node.mode):
            block = _place(node, block)
    if block > BLOCKS_MAX:
        raise Invalid(f"the layer needs {block} blocks: an EROFS image has at most {BLOCKS_MAX} (16 TiB)")
    chunks = any(node.layout == CHUNKS for node in emitted(root, directories))
    return Plan(number, first_shared, block, chunks)


def union(node: Node) -> int:
    """What the inode's field of many meanings has."""
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        return encoded_device(os.major(node.rdev), os.minor(node.rdev))
    if node.layout == CHUNKS:
        return node.table[0] - (BLOCK.bit_length() - 1)  # EROFS_CHUNK_FORMAT_BLKBITS_MASK; a plain block map
    return node.start


def _choose(node: Node, body: int) -> tuple[int, int]:
    """(layout, bytes behind the inode's body)."""
    if node.table[0]:
        return CHUNKS, 4 * _count(node.size, node.table[0])
    if stat.S_ISLNK(node.mode):
        return (INLINE, node.size) if body + node.size <= BLOCK else (PLAIN, 0)
    tail = node.size if stat.S_ISREG(node.mode) else node.size % BLOCK
    if 0 < tail <= _INLINE_MAX and body + tail <= BLOCK:
        return INLINE, tail
    return PLAIN, 0


def _place(node: Node, block: int) -> int:
    """Give a file its blocks; the next free one."""
    if node.layout == INLINE or not node.size:
        return block
    if node.layout == PLAIN and node.size >= _HUGE_MIN:
        block += -block % (HUGE // BLOCK)
    node.start = block
    if node.layout == CHUNKS:
        each = (1 << node.table[0]) // BLOCK
        return block + each * len(node.table[1])
    return block + _blocks(node.size)


def _find_holes(directories: Sequence[Directory], holes: Callable[[Directory, bytes], int]) -> None:
    for here in directories:
        for name, node in here.entries:
            missing = node.size - node.taken
            if missing < _HOLES_MIN or missing < node.size // 8 or not stat.S_ISREG(node.mode):
                continue
            fd = holes(here, name)
            try:
                node.table = _chunks(fd, node.size)
            finally:
                os.close(fd)


def _chunks(fd: int, size: int) -> tuple[int, Sequence[int]]:
    """(bits of the chunk size, chunks with data); (0, ()) where leaving out the others would save too little."""
    bits = max(BLOCK.bit_length() - 1, (-(-size // _CHUNKS_MAX) - 1).bit_length())
    here: list[int] = []
    for start, end in data(fd, 0, size):
        first = start >> bits
        here.extend(range(max(first, here[-1] + 1 if here else 0), ((end - 1) >> bits) + 1))
    saved = (_count(size, bits) - len(here)) << bits
    return (bits, here) if saved >= _HOLES_MIN else (0, ())


def _count(size: int, bits: int) -> int:
    return -(-size >> bits) if size else 0


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
