"""How much a tree takes."""

from __future__ import annotations

import os
import stat

from mamushka.linux.fd import open_beneath
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@value
class Usage:
    """``size`` is the sum of file lengths, ``disk`` what the file system has set aside for them; in bytes."""

    size: int = 0
    disk: int = 0
    entries: int = 0


def usage(path: str) -> Usage:
    """Of everything below a directory, inodes with several names once; what vanishes meanwhile does not count."""
    size = disk = entries = 0
    seen: set[int] = set()
    pending = [b""]
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while pending:
            directory = pending.pop()
            for name, found in _listed(root, directory):
                entries += 1
                if stat.S_ISDIR(found.st_mode):
                    pending.append(directory + b"/" + name if directory else name)
                elif found.st_nlink > 1:
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                size += found.st_size if stat.S_ISREG(found.st_mode) else 0
                disk += found.st_blocks * 512
    finally:
        os.close(root)
    return Usage(size, disk, entries)


def _listed(root: int, directory: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    try:
        fd = open_beneath(root, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone, or a link now
        return
    try:
        for name in os.listdir(fd):
            try:
                yield os.fsencode(name), os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
