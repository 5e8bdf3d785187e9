"""A machine's writable top: a sparse disk with an empty ext4, above the layers that it shares with others.

The file takes what the guest has written, not what it was promised; and what the guest writes is in the host's page
cache, which gives it back under pressure, instead of in the guest's memory, where a package's installation alone would
fill a small machine. It outlives a stop, as a container's top does. The file system is made here (mkfs.ext4 needs some
milliseconds and 140 KiB) because a guest's first program would need megabytes for that.

Once a guest has run, the disk is a stranger's: the host's kernel never mounts it. Who wants to look into it asks a
machine.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.linux.fallocate import data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# As Docker's devicemapper had it: nobody notices it, and a program that runs wild stops before the host's disk is full.
SIZE = 10 << 30
# The journal takes 16 MiB; what is left below this is not worth a disk.
SIZE_MIN = 64 << 20
# What a file on the host's ext4 can have, and 32-bit block numbers of 4 KiB count.
SIZE_MAX = (16 << 40) - (2 << 20)
_PATH = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
_FORMAT = 1  # of patterns: another, where the words below change
_FEATURES = "^resize_inode,sparse_super2,metadata_csum,64bit"
# Tables and journal are zeros already, in a file that is all hole; a second superblock would help nobody.
_EXTENDED = "lazy_itable_init=1,lazy_journal_init=1,num_backup_sb=0,nodiscard"


def make(path: str, size: int = SIZE, *, patterns: str = "") -> None:
    """Make the disk of ``size`` bytes, or keep the one that is there; whole or not at all.

    ``patterns`` is a directory in which the first of a size is kept, and copied from then on: 140 KiB, no program.
    Invalid for a size that no disk has; Unsupported where mkfs.ext4 is missing or fails, with its own words.
    """
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise Invalid(f"a writable top of {size} bytes: {SIZE_MIN >> 20} MiB to 16 TiB are possible")
    if os.path.exists(path):
        return
    pattern = f"{patterns}/top-{_FORMAT}-{size}.ext4" if patterns else ""
    if pattern and not os.path.exists(pattern):
        os.makedirs(patterns, 0o700, exist_ok=True)
        _make(pattern, size, _format)
    _make(path, size, (lambda staged: _copy(pattern, staged)) if pattern else _format)
    trace.event("storage.top", path=path, size=size)


def _make(path: str, size: int, fill: Callable[[str], None]) -> None:
    staged = f"{path}.{os.urandom(4).hex()}"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size - size % 4096)
        fill(staged)
        os.rename(staged, path)
    except BaseException:
        os.unlink(staged)
        raise
    finally:
        os.close(fd)


def _copy(pattern: str, path: str) -> None:
    """What is no hole of it. Two disks with one name (UUID) are never in the same machine."""
    source, target = os.open(pattern, os.O_RDONLY | os.O_CLOEXEC), os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for begin, end in data(source, 0, os.fstat(source).st_size):
            os.lseek(target, begin, os.SEEK_SET)
            while begin < end:
                begin += os.sendfile(target, source, begin, end - begin)
    finally:
        os.close(source)
        os.close(target)


def program() -> str:
    """Who makes such a file system; empty where nobody is there."""
    return next((found for place in _PATH if os.access(found := f"{place}/mkfs.ext4", os.X_OK)), "")


def _format(path: str) -> None:
    maker = program()
    if not maker:
        raise Unsupported(
            "cannot make a disk for what the machine writes: there is no mkfs.ext4",
            hint="install e2fsprogs, or keep what it writes in its memory: --storage-opt size=0",
        )
    words = [maker, "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=16", "-O", _FEATURES, "-E", _EXTENDED, path]
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        quiet = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)]
        heard = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
        pid = os.posix_spawn(maker, words, {"PATH": ":".join(_PATH)}, file_actions=[*quiet, *heard])
    finally:
        os.close(writing)
    with open(reading, "rb") as said:
        told = said.read(4096)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        said_so = told.decode("utf-8", "replace").strip() or f"it ended with {status}"
        raise Unsupported(f"cannot make a disk for what the machine writes: {said_so}")
