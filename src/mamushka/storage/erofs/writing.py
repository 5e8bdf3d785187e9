"""A planned image becomes bytes: two streams, inodes and data, each in the order of its places.

Files below 64 KiB are read into a buffer that is written a MiB at a time; what is larger goes from file to file in
the kernel (copy_file_range, which shares blocks where the file system can) and never passes through this process.
"""

from __future__ import annotations

import errno
import os
import stat

from mamushka.errors import Conflict
from mamushka.linux.fallocate import data
from mamushka.linux.fd import open_beneath
from mamushka.storage.erofs import directory
from mamushka.storage.erofs.format import BLOCK, CHUNKS, HOLE, INLINE, inode
from mamushka.storage.erofs.layout import union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.storage.erofs.scan import Directory, Node
    from mamushka.storage.erofs.xattrs import Shared

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SMALL = 64 << 10
_PIECE = 1 << 30
_KINDS = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class Stream:
    """Writes pieces whose places ascend; what lies between two of them, less than a block, is zero."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._start = 0

    def put(self, position: int, piece: bytes) -> None:
        """One piece; never before the end of the one before. A whole block between them may be another's."""
        gap = position - self._start - len(self._buffer)
        if gap >= BLOCK or len(self._buffer) >= 1 << 20:
            self.flush()
            self._start, gap = position, 0
        self._buffer += bytes(gap)
        self._buffer += piece

    def flush(self) -> None:
        """Write what is held."""
        held = memoryview(self._buffer)
        while held:
            written = os.pwrite(self._fd, held, self._start)
            held, self._start = held[written:], self._start + written
        self._buffer = bytearray()


class Writer:
    """One image that is being written into ``out``, an empty file."""

    def __init__(self, root: int, out: int, shared: Shared) -> None:
        self._root, self._out, self._shared = root, out, shared
        self._inodes, self._blocks, self._files = Stream(out), Stream(out), Stream(out)

    def write(self, directories: Sequence[Directory]) -> None:
        """Everything but the superblock and the shared attributes. Conflict where a file has changed meanwhile."""
        self._node(directories[0].node, -1, b"")
        for here in directories:
            fd = open_beneath(self._root, here.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name, node in here.entries:
                    self._node(node, fd, name)
            finally:
                os.close(fd)
        for stream in (self._inodes, self._blocks, self._files):
            stream.flush()

    def _node(self, node: Node, at: int, name: bytes) -> None:
        attributes = self._shared.body(node.attributes)
        tail = b""
        if stat.S_ISDIR(node.mode):
            tail = self._directory(node)
        elif stat.S_ISREG(node.mode):
            tail = self._file(node, at, name)
        elif node.link:
            tail = self._link(node)
        fields = node.mode, node.size, union(node), node.number, node.owner, node.mtime_ns, node.links
        head = inode(node.layout, len(attributes), *fields)
        self._inodes.put(node.nid * 32, head + attributes + tail)

    def _directory(self, node: Node) -> bytes:
        assert node.children is not None and node.parent is not None
        entries = [(name, child.nid, _KINDS[stat.S_IFMT(child.mode)]) for name, child in node.children]
        entries += [(b".", node.nid, 2), (b"..", node.parent.nid, 2)]
        whole = directory.content(sorted(entries))
        inside = len(whole) - len(whole) % BLOCK if node.layout == INLINE else len(whole)
        if inside:
            self._blocks.put(node.start * BLOCK, whole[:inside])
        return whole[inside:]

    def _link(self, node: Node) -> bytes:
        if node.layout == INLINE:
            return node.link
        self._blocks.put(node.start * BLOCK, node.link)
        return b""

    def _file(self, node: Node, at: int, name: bytes) -> bytes:
        if not node.size:
            return b""
        fd = os.open(name, READ, dir_fd=at)
        try:
            if node.layout == CHUNKS:
                return self._chunks(node, fd, name)
            if node.size > _SMALL:
                self._copy(fd, 0, node.size, node.start * BLOCK, name)
                return b""
            content = os.read(fd, node.size)
            while len(content) < node.size:
                content += os.read(fd, node.size - len(content)) or self._changed(name)
        finally:
            os.close(fd)
        if node.layout == INLINE:
            return content
        self._files.put(node.start * BLOCK, content)
        return b""

    def _chunks(self, node: Node, fd: int, name: bytes) -> bytes:
        """Copy the chunks that are here; the table of their addresses."""
        bits, here = node.table
        table = [HOLE] * (-(-node.size >> bits))
        for number, chunk in enumerate(here):
            table[chunk] = node.start + (number << bits) // BLOCK
            first, last = chunk << bits, min(node.size, chunk + 1 << bits)
            for start, end in data(fd, first, last):
                self._copy(fd, start, end - start, table[chunk] * BLOCK + start - first, name)
        return b"".join(block.to_bytes(4, "little") for block in table)

    def _copy(self, source: int, start: int, length: int, target: int, name: bytes) -> None:
        while length:
            moved = _move(source, self._out, start, min(length, _PIECE), target)
            if not moved:
                self._changed(name)
            start, target, length = start + moved, target + moved, length - moved

    def _changed(self, name: bytes) -> bytes:
        raise Conflict(
            f"{name!r} became shorter while its layer was made an image", hint="remove the image, pull again"
        )


def _move(source: int, out: int, start: int, length: int, target: int) -> int:
    try:
        return os.copy_file_range(source, out, length, start, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        return os.pwrite(out, os.pread(source, min(length, 1 << 20), start), target)
