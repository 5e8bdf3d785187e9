"""One member of an archive becomes one file, link or node below a directory descriptor.

Attributes are set in the one order that works: owner, mode (chown clears setuid), extended attributes (a
write or chown clears security.capability), times. FileExistsError is the caller's to solve; no data has
been taken then.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.linux import xattr
from mamushka.linux.fd import proc_path
from mamushka.linux.process import initial
from mamushka.spec.tar import BLOCK, CHARACTER, FIFO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.spec.tar import Member

# Attributes that mean something to the machine that unpacks and not to the image: the kernel's own notes of
# how layers are stacked (a hostile redirect or metacopy would reach into other layers) and local labels.
FOREIGN_XATTRS = ("trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK, FIFO: stat.S_IFIFO}


def is_whiteout(found: os.stat_result) -> bool:
    """Whether this is overlayfs's "nothing here": a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class Maker:
    """Makes members with few calls: it knows which owner and mode a new file has without asking."""

    def __init__(self) -> None:
        self._owner = os.geteuid(), os.getegid()
        self._alone = not initial() and _alone()
        self._masked = _umask() | 0o7000  # the bits that open, mkdir and mknod do not set

    def file(self, member: Member, at: int, base: bytes, pieces: Iterator[memoryview]) -> None:
        """A regular file with its data."""
        fd = os.open(base, _CREATE, member.mode & 0o777, dir_fd=at)
        try:
            if member.sparse is None:
                for piece in pieces:
                    written = os.write(fd, piece)
                    while written < len(piece):
                        written += os.write(fd, piece[written:])
            else:
                _write_sparse(fd, member, pieces)
            if (member.uid, member.gid) != self._owner:
                self._give(member, fd)
            if member.mode & self._masked:
                os.fchmod(fd, member.mode)
            for name, content in wanted_xattrs(member):
                _set_xattr(fd, b"", name, content)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)

    def symlink(self, member: Member, at: int, base: bytes) -> None:
        """A symbolic link, whatever it says."""
        if not member.link:
            raise Invalid(f"{member.name!r} is a symbolic link to nothing")
        os.symlink(member.link, base, dir_fd=at)
        self._attributes(member, at, base)

    def node(self, member: Member, at: int, base: bytes) -> None:
        """A device or a named pipe."""
        kind = _NODES[member.kind]
        if kind != stat.S_IFIFO and not initial() and (member.major, member.minor) != (0, 0):
            # Nobody could open it: a user namespace's mounts have no devices. Workloads get theirs from the runtime.
            trace.event("storage.device_left_out", name=member.name)
            return
        if kind != stat.S_IFIFO and self._owner[0] != 0:
            raise Unsupported(f"{member.name!r} is a device node, which only root may make")
        # include/linux/kdev_t.h: 12 bits of major, 20 of minor
        if not (0 <= member.major < 1 << 12 and 0 <= member.minor < 1 << 20):
            raise Invalid(f"{member.name!r} has the device number {member.major}:{member.minor}, which no device has")
        os.mknod(base, kind | member.mode & 0o777, os.makedev(member.major, member.minor), dir_fd=at)
        if member.mode & self._masked:
            # chmod follows links: go through the node itself, in case somebody puts a link in its place
            fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                os.chmod(proc_path(fd), member.mode)
            finally:
                os.close(fd)
        self._attributes(member, at, base)

    def directory(self, member: Member, fd: int) -> None:
        """The attributes of an open directory that will not change any more."""
        if (member.uid, member.gid) != self._owner:
            self._give(member, fd)
        os.fchmod(fd, member.mode)
        for name, content in wanted_xattrs(member):
            _set_xattr(fd, b"", name, content)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _give(self, member: Member, what: int | bytes, at: int | None = None) -> None:
        """Change the owner. Who has one id keeps what would be others': there is nobody else to give it to."""
        if self._alone:
            trace.event("storage.owner_kept", name=member.name, uid=member.uid, gid=member.gid)
            return
        try:
            if isinstance(what, int):
                os.fchown(what, member.uid, member.gid)
            else:
                os.chown(what, member.uid, member.gid, dir_fd=at, follow_symlinks=False)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise Unsupported(
                f"{member.name!r} belongs to {member.uid}:{member.gid}, which is no id in this user namespace",
                hint="grant more subordinate ids in /etc/subuid and /etc/subgid: 65536 are enough for most images",
            ) from error

    def _attributes(self, member: Member, at: int, base: bytes) -> None:
        """Of what is not to be opened."""
        if (member.uid, member.gid) != self._owner:
            self._give(member, base, at)
        for name, content in wanted_xattrs(member):
            _set_xattr(at, base, name, content)
        os.utime(base, ns=(member.mtime_ns, member.mtime_ns), dir_fd=at, follow_symlinks=False)


def wanted_xattrs(member: Member) -> Iterable[tuple[str, bytes]]:
    """A member's extended attributes without those that are not an image's to set."""
    return [item for item in member.xattrs if not item[0].startswith(FOREIGN_XATTRS)]


def _set_xattr(at: int, base: bytes, name: str, content: bytes) -> None:
    try:
        if base:
            xattr.set_at(at, base, name, content)
        else:
            os.setxattr(at, name.encode("utf-8", "surrogateescape"), content)
    except OSError as error:
        raise Unsupported(
            f"cannot set the extended attribute {name!r} of {len(content)} bytes: {error.strerror}",
            hint="keep images on a file system with extended attributes, as root",
        ) from error


def _write_sparse(fd: int, member: Member, pieces: Iterable[memoryview]) -> None:
    """Put each piece at its offset; what lies between stays a hole."""
    segments = iter(member.sparse or ())
    offset = room = 0
    for piece in pieces:
        while piece:
            while not room:
                offset, room = next(segments)
            written = os.pwrite(fd, piece[:room], offset)
            offset, room, piece = offset + written, room - written, piece[written:]
    os.ftruncate(fd, member.size)


def _alone() -> bool:
    from mamushka.linux.users import single

    return single()


def _umask() -> int:
    """This process's umask, read without changing it: other threads create files meanwhile."""
    with open("/proc/self/status", "rb") as status:
        return next((int(line[6:], 8) for line in status if line.startswith(b"Umask:")), 0o777)
