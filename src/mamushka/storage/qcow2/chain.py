"""Backing files: where an image has nothing, the one below it is read. A stranger names it, so it is confined.

The name leads from the directory of the image that has it; nothing on the way may lead out of the one directory that
the whole chain is confined to, neither ``..`` nor a link nor an absolute path elsewhere (openat2(2), RESOLVE_BENEATH).
What is below is only read.
"""

from __future__ import annotations

import errno
import os

from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.linux.abi import sizeof
from mamushka.linux.fd import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, open_how, openat2
from mamushka.storage.block import FORMATS, checked_file, open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.storage.block import Disk
    from mamushka.storage.qcow2.header import Header

# Each image of a chain costs a descriptor and tables in memory; a loop would never end. Snapshots by hand reach tens.
DEPTH_MAX = 64


def open_backing(header: Header, path: str, within: str, depth: int) -> Disk:
    """The disk below an image that lies at ``path``."""
    name, kind = header.backing, header.backing_format
    if depth >= DEPTH_MAX:
        raise Invalid(f"qcow2: more than {DEPTH_MAX} backing files below each other, the last is {name!r}")
    if kind not in FORMATS:
        raise Unsupported(f"qcow2: the backing file {name!r} is of format {kind!r}; we read {', '.join(FORMATS)}")
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif ":" in name.split("/", 1)[0]:
        raise Unsupported(f"qcow2: the backing file {name!r} is no path", hint="only files can be backing files")
    inner = _relative(name, path, within)
    fd = _open(inner, within, name)
    return open_image(checked_file(fd, name), os.path.join(within, inner), kind, False, within, depth + 1)


def _relative(name: str, path: str, within: str) -> str:
    """The backing file's path as seen from the directory that confines it."""
    root, image = os.path.realpath(within), os.path.realpath(os.path.dirname(path) or ".")
    whole = os.path.normpath(os.path.join(image, name))
    inner = os.path.relpath(whole, root)
    if inner == ".." or inner.startswith("../"):
        raise _outside(name, within)
    return inner


def _open(inner: str, within: str, name: str) -> int:
    root = os.open(within, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    how = open_how(flags=os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    try:
        return openat2(root, os.fsencode(inner), how, sizeof(how))
    except FileNotFoundError as error:
        raise NotFound(f"qcow2: the backing file {name!r} does not exist below {within}") from error
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _outside(name, within) from error
        raise
    finally:
        os.close(root)


def _outside(name: str, within: str) -> Invalid:
    return Invalid(
        f"qcow2: the backing file {name!r} leads out of {within}",
        hint="an image could name any file of this host; put both below one directory, or name a directory above both",
    )
