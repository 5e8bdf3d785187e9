"""EROFS as it lies on disk: little-endian structures, numbers, and the superblock's checksum.

fs/erofs/erofs_fs.h. A block has 4096 bytes; an inode's number (nid) is its byte offset in the image divided by 32.
"""

from __future__ import annotations

from struct import Struct

BLOCK = 4096
SLOT = 32  # what nids count
INODE_SIZE = 64
SUPER_OFFSET = 1024
# Block addresses have 32 bits, and all ones is the address of a hole.
BLOCKS_MAX = (1 << 32) - 1
HOLE = 0xFFFFFFFF

PLAIN, INLINE, CHUNKS = 0, 2, 4
# Bits of i_format: 0 is the extended form (32-bit owners, nanoseconds), 1 to 3 the layout of the data.
_EXTENDED = 1

_SUPER_MAGIC = 0xE0F5E1E2
_COMPAT_SB_CHKSUM, _COMPAT_MTIME = 0x1, 0x2
_INCOMPAT_CHUNKED_FILE = 0x4
_BLOCK_BITS = 12

# magic checksum compat blkszbits extslots root_nid inos build_time build_nsec blocks meta_blkaddr xattr_blkaddr uuid
# volume_name incompat, then what is zero without compression, devices and prefixes
_SUPER = Struct("<IIIBBHQQIIII16s16sI44x")
# format xattr_icount mode reserved size u ino uid gid mtime mtime_nsec nlink reserved
_INODE = Struct("<HHHHQIIIIQII16x")
DIRENT = Struct("<QHBx")
XATTR_HEADER = Struct("<4xB7x")
XATTR_ENTRY = Struct("<BBH")


def inode(
    layout: int,
    xattr_size: int,
    mode: int,
    size: int,
    union: int,
    number: int,
    owner: tuple[int, int],
    mtime_ns: int,
    links: int,
) -> bytes:
    """The extended inode; ``union`` is a block address, a device number or a chunk format, as the layout says."""
    count = (xattr_size - XATTR_HEADER.size) // 4 + 1 if xattr_size else 0
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    seconds &= (1 << 64) - 1  # the kernel reads it as signed
    return _INODE.pack(
        _EXTENDED | layout << 1, count, mode, 0, size, union, number, *owner, seconds, nanoseconds, links
    )


def superblock(*, root: int, inodes: int, blocks: int, shared: int, uuid: bytes, chunks: bool) -> bytes:
    """The image's first block up to where the inodes begin; ``shared`` is the block of the shared attributes.

    The time of making is always 0: equal trees have equal images.
    """

    def form(checksum: int) -> bytes:
        compat = _COMPAT_SB_CHKSUM | _COMPAT_MTIME
        incompat = _INCOMPAT_CHUNKED_FILE if chunks else 0
        head = (_SUPER_MAGIC, checksum, compat, _BLOCK_BITS, 0, root, inodes, 0, 0, blocks, 0, shared)
        return _SUPER.pack(*head, uuid, b"", incompat).ljust(BLOCK - SUPER_OFFSET, b"\0")

    return bytes(SUPER_OFFSET) + form(crc32c(form(0)))


def encoded_device(major: int, minor: int) -> int:
    """A device number as new_encode_dev() of include/linux/kdev_t.h has it."""
    return (minor & 0xFF) | major << 8 | (minor & 0xFFF00) << 12


def crc32c(content: bytes) -> int:
    """Castagnoli's CRC, begun with all ones and not inverted at the end, as the kernel's crc32c(~0, …) is."""
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    crc = 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc
