"""A tree on disk becomes nodes: one for each inode, in the order in which the image will have them.

Directories are read by descriptors, and no link is followed. The tree is a stranger's, but it was applied: its
number of entries, and with it the some 800 bytes that each takes here, is bounded by apply.Limits.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Invalid
from mamushka.linux import xattr
from mamushka.linux.fd import open_beneath
from mamushka.spec.tar import NAME_MAX
from mamushka.storage.erofs import directory
from mamushka.storage.erofs.xattrs import entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NO_TABLE: tuple[int, Sequence[int]] = 0, ()


class Node:
    """One inode: what the tree says of it, and where the image has it (``layout.py`` fills that in)."""

    __slots__ = (
        "attributes", "children", "layout", "link", "links", "mode", "mtime_ns", "nid", "number", "owner", "parent",
        "rdev", "size", "start", "table", "taken",
    )  # fmt: skip

    def __init__(self, name: bytes, found: os.stat_result, attributes: dict[str, bytes]) -> None:
        self.mode = found.st_mode
        self.owner = found.st_uid, found.st_gid
        self.mtime_ns = found.st_mtime_ns
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        self.taken = found.st_blocks * 512  # bytes that its file system has set aside for it
        self.rdev = found.st_rdev
        self.attributes = entries(name, attributes)
        self.links = 1
        self.link = b""
        self.parent: Node | None = None  # of a directory; the root's is itself
        self.children: list[tuple[bytes, Node]] | None = None
        self.nid = self.number = self.layout = self.start = 0
        self.table = _NO_TABLE  # chunk bits, and which chunks are here


class Directory:
    """A directory and the entries that are the image's next inodes: all of them but later names of known ones."""

    __slots__ = ("entries", "node", "path")

    def __init__(self, path: bytes, node: Node) -> None:
        self.path, self.node = path, node
        self.entries: list[tuple[bytes, Node]] = []


def scan(root: int) -> list[Directory]:
    """Everything below the directory ``root``, the first one found; what is mounted in it looks empty."""
    seen = os.fstat(root)
    top = Node(b"/", seen, xattr.read(root))
    top.parent, top.links = top, 2
    known: dict[tuple[int, int], Node] = {}
    found: list[Directory] = []
    pending = [Directory(b"", top)]
    while pending:
        here = pending.pop()
        if len(here.path) > NAME_MAX:
            raise Invalid(f"{here.path[:80]!r}… lies deeper than a path can say")
        found.append(here)
        below = list(_fill(root, here, known, seen.st_dev))
        pending.extend(reversed(below))
    return found


def _fill(root: int, here: Directory, known: dict[tuple[int, int], Node], device: int) -> Iterator[Directory]:
    """Read one directory; yields the directories in it that are still to be read."""
    children: list[tuple[bytes, Node]] = []
    fd = open_beneath(root, here.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            seen = os.lstat(name, dir_fd=fd)
            node = known.get((seen.st_dev, seen.st_ino)) if seen.st_nlink > 1 else None
            if node is not None:
                node.links += 1
                children.append((name, node))
                continue
            node = Node(name, seen, xattr.read_at(fd, name))
            children.append((name, node))
            here.entries.append(children[-1])
            if stat.S_ISDIR(seen.st_mode):
                here.node.links += 1
                node.parent, node.links = here.node, 2
                if seen.st_dev == device:
                    yield Directory(here.path + b"/" + name if here.path else name, node)
                else:
                    node.children, node.size = [], directory.size([b".", b".."])
            elif stat.S_ISLNK(seen.st_mode):
                node.link = os.readlink(name, dir_fd=fd)
                node.size = len(node.link)
            if seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode):
                known[seen.st_dev, seen.st_ino] = node
    finally:
        os.close(fd)
    here.node.children = children
    here.node.size = directory.size(sorted([b".", b"..", *(name for name, _ in children)]))
