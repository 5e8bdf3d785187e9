"""A directory tree as an EROFS image: the form in which a machine gets its layers.

EROFS is read-only, uncompressed here, and lies in whole blocks of 4 KiB, so that a guest maps a file's pages right out
of the host's page cache (pmem with DAX): machines with a layer in common have its pages once, all of them. What lies
where, and why, is told by ``layout.py``; the structures are in ``format.py``.

Equal trees give equal images, byte for byte: names are sorted, the image's own time is 0, its UUID the caller's. A
sparse file is as sparse as the file system says; the same archive on the same kind of file system is the same.

The writer knows extended inodes, flat data (whole or with an inline end), chunks with holes, attributes inside inodes
and shared, hard links, devices, pipes and sockets; overlayfs's whiteouts are such devices and its opaque directories
such attributes. It writes neither compression, nor several devices, nor the compact inode: 32 bytes less for each
file would cost its nanoseconds.
"""

from __future__ import annotations

import os

from mamushka.storage.erofs.format import BLOCK, SUPER_OFFSET, superblock
from mamushka.storage.erofs.layout import HUGE, plan
from mamushka.storage.erofs.scan import scan
from mamushka.storage.erofs.writing import READ, Writer
from mamushka.storage.erofs.xattrs import Shared
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.storage.erofs.scan import Directory

__all__ = ["Image", "write"]


@value
class Image:
    """``size`` is what is used; ``length`` the file's, a multiple of 2 MiB, whose rest is a hole. In bytes."""

    size: int
    length: int
    inodes: int


def write(root: int, out: int, uuid: bytes) -> Image:
    """Write the directory ``root`` as an image into the empty file ``out``; ``uuid`` has 16 bytes.

    Invalid where the format has no room for an attribute or for the whole; Conflict or FileNotFoundError where the
    tree changes meanwhile.
    """

    def reopen(here: Directory, name: bytes) -> int:
        path = here.path + b"/" + name if here.path else name
        return os.open(path, READ, dir_fd=root)

    directories = scan(root)
    nodes = [directories[0].node, *(node for here in directories for _, node in here.entries)]
    shared = Shared(node.attributes for node in nodes)
    places = plan(directories, shared, reopen)
    length = -(-places.end * BLOCK // HUGE) * HUGE
    os.ftruncate(out, length)
    Writer(root, out, shared).write(directories)
    _put(out, shared.area, places.shared * BLOCK)
    head = superblock(
        root=nodes[0].nid,
        inodes=places.inodes,
        blocks=places.end,
        shared=places.shared,
        uuid=uuid,
        chunks=places.chunks,
    )
    _put(out, head[SUPER_OFFSET:], SUPER_OFFSET)
    return Image(places.end * BLOCK, length, places.inodes)


def _put(out: int, content: bytes | bytearray, position: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(out, rest, position)
        rest, position = rest[written:], position + written
