"""Extended attributes of what a directory descriptor and a name say, links never followed.

The kernel has no ``*at`` form of these calls before Linux 6.13; ``/proc/self/fd/N/name`` does the same.
"""

from __future__ import annotations

import errno
import os

from mamushka.linux.fd import proc_path

# fs/xattr.c: the kernel gives no list and no attribute that is larger.
XATTR_SIZE_MAX = 65536


def set_at(directory: int, name: bytes, attribute: str, content: bytes) -> None:
    """Set one attribute of ``name`` in ``directory``."""
    os.setxattr(proc_path(directory) + b"/" + name, _encode(attribute), content, follow_symlinks=False)


def read_at(directory: int, name: bytes) -> dict[str, bytes]:
    """All attributes of ``name`` in ``directory``; none where the file system has none."""
    return _read(proc_path(directory) + b"/" + name)


def read(fd: int) -> dict[str, bytes]:
    """All attributes of an open file or directory."""
    return _read(fd)


def _read(target: int | bytes) -> dict[str, bytes]:
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(target, _encode(name), follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return found


def _encode(attribute: str) -> bytes:
    return attribute.encode("utf-8", "surrogateescape")
