"""Block images: what a disk of a virtual machine is made of, raw or qcow2, behind one small protocol.

A disk is a row of bytes that is read and written at offsets, into and from pieces of memory as they come. Nothing
here knows of virtual machines. One thread at a time uses a disk.

Image files come from strangers. The format is never guessed: a guest could write the header of another format into
its raw disk and be given any file of the host as that image's backing file by the next one who guesses. For the same
reason backing files lie below one directory, and their format is named by the image.

A disk that is written is locked against all others, also against QEMU's programs, whose way of locking we share: each
holder has a shared lock on one byte for what it does (100 + kind) and one for what it does not bear in others
(200 + kind), and looks whether anybody has the opposite. QEMU, block/file-posix.c, raw_handle_perm_lock.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.linux import lock
from mamushka.linux.fallocate import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, fallocate
from mamushka.storage import vectors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Disk(Protocol):
        """A row of bytes. Offsets and lengths are bytes; Invalid where they lead outside or the image is broken,
        OSError where the host fails."""

        @property
        def size(self) -> int:
            """Bytes, a multiple of 512."""

        @property
        def writable(self) -> bool:
            """Whether anything but reading is allowed."""

        @property
        def granularity(self) -> int:
            """Bytes of the smallest aligned part that can be discarded."""

        def readv(self, offset: int, views: Sequence[memoryview]) -> None:
            """Fill the views, one after the other."""

        def writev(self, offset: int, views: Sequence[memoryview]) -> None:
            """Write the views, one after the other; it lasts from the next ``flush`` on."""

        def flush(self) -> None:
            """Make all that was written last, also if the host loses power."""

        def discard(self, offset: int, length: int) -> None:
            """Say that a part is not needed any more; what is read there afterwards is old or zero."""

        def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            """Let a part read as zeros; with ``unmap`` its space may be given back."""

        def close(self) -> None:
            """Flush, and give everything back."""


SECTOR = 512
RAW, QCOW2 = "raw", "qcow2"
FORMATS = (RAW, QCOW2)

# Kinds of use of an image, as QEMU numbers them.
_READ, _WRITE, _RESIZE = 0, 1, 3
_USED, _REFUSED = 100, 200


class Raw:
    """A file or block device, byte by byte. Owns its descriptor."""

    granularity = 4096

    def __init__(self, fd: int, *, writable: bool) -> None:
        self.fd, self.writable = fd, writable
        end = os.lseek(fd, 0, os.SEEK_END)
        self.size = (end + SECTOR - 1) // SECTOR * SECTOR  # the rest of a last sector reads as zeros

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views, straight from the page cache."""
        inside(self, offset, vectors.length(views))
        vectors.read_at(self.fd, views, offset)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views."""
        inside(self, offset, vectors.length(views), write=True)
        vectors.write_at(self.fd, views, offset)

    def flush(self) -> None:
        """Wait until the disk has it."""
        if self.writable:
            os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Make a hole, where the file system can."""
        inside(self, offset, length, write=True)
        if length:
            hole(self.fd, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Make a hole, or blocks of zeros that stay reserved, or write zeros."""
        inside(self, offset, length, write=True)
        if not length or (unmap and hole(self.fd, offset, length)):
            return
        try:
            fallocate(self.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError:  # not every file system; what is really wrong shows when it is written
            vectors.write_zeros(self.fd, offset, length)

    def close(self) -> None:
        """Flush and close."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:
                if self.writable:
                    os.fdatasync(fd)
            finally:
                os.close(fd)


def inside(disk: Disk, offset: int, length: int, *, write: bool = False) -> None:
    """Invalid unless the disk has [offset, offset+length), and may be written where that is wanted."""
    if not (0 <= offset <= disk.size and 0 <= length <= disk.size - offset):
        raise Invalid(f"{length} bytes at {offset} lie outside of a disk of {disk.size} bytes")
    if write and not disk.writable:
        raise Invalid("a disk that is only read cannot be written")


def hole(fd: int, offset: int, length: int) -> bool:
    """Give the blocks of a part back; False where the file system or device cannot."""
    try:
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
    except OSError:  # EOPNOTSUPP, EINVAL of a device, ETXTBSY: space is lost, nothing else
        return False
    return True


def open_disk(path: str, kind: str, *, writable: bool = False, within: str | None = None) -> Disk:
    """The disk in the file or block device ``path``, whose format is ``raw`` or ``qcow2``.

    ``within`` is the directory below which backing files must lie; without it, the image's own. Conflict where
    another process uses the image in a way that does not go together.
    """
    if kind not in FORMATS:
        raise Invalid(f"{kind!r} is no format of a disk that we know", hint=f"choose one of {', '.join(FORMATS)}")
    directory = os.path.dirname(path) or "."
    return open_image(open_file(path, writable), path, kind, writable, within or directory)


def open_image(fd: int, path: str, kind: str, writable: bool, within: str, depth: int = 0) -> Disk:
    """``open_disk`` of an open file, which is taken over."""
    try:
        guard(fd, path, writable)
        if kind == RAW:
            return Raw(fd, writable=writable)
        from mamushka.storage.qcow2.image import open_qcow2

        return open_qcow2(fd, path, writable=writable, within=within, depth=depth)
    except BaseException:
        os.close(fd)
        raise


def open_file(path: str, writable: bool) -> int:
    """A regular file or block device, opened; anything else could hang or surprise."""
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"disk {path} does not exist", hint="give the path of a file or block device") from error
    return checked_file(fd, path)


def checked_file(fd: int, path: str) -> int:
    """The descriptor again when it is of a regular file or block device; closed and Invalid otherwise."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise Invalid(f"disk {path} is neither a regular file nor a block device")
    return fd


def guard(fd: int, path: str, writable: bool) -> None:
    """Hold the image's locks for as long as the descriptor lives; Conflict where somebody stands against it."""
    uses = (_READ, _WRITE, _RESIZE) if writable else (_READ,)
    refuses = (_WRITE, _RESIZE)
    for byte in (*(_USED + use for use in uses), *(_REFUSED + use for use in refuses)):
        lock.take(fd, byte=byte, shared=True)
    taken = any(lock.held(fd, byte=_REFUSED + use) for use in uses)
    if taken or any(lock.held(fd, byte=_USED + use) for use in refuses):
        raise Conflict(
            f"disk {path} is in use by another process" + ("" if writable else ", which writes to it"),
            hint="a disk is written by one machine alone; make an image with this one as its backing file for each",
        )


def create_raw(path: str, size: int) -> None:
    """A new file of zeros that takes no space yet. Conflict where there is one already."""
    if size <= 0 or size % SECTOR:
        raise Invalid(f"a disk of {size} bytes: not a multiple of {SECTOR}")
    fd = new_file(path)
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.unlink(path)
        raise Invalid(f"a disk of {size} bytes: {error.strerror}") from error
    finally:
        os.close(fd)


def new_file(path: str) -> int:
    """A file that did not exist, for its owner alone."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Conflict(f"{path} exists already") from error
