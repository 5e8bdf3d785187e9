"""Files of a workload whose root only its machine can read: asked of the machine, in tar streams as of a container.

What runs is asked itself, and answers with all that its program sees, volumes and memory included. What has ended has a
disk that no kernel of the host's may mount, since a stranger wrote it. So another machine is made on the same disks for
the occasion, that begins no program: it goes on from a saved one where there is one (machine/warm.py), and is gone when
the question is answered. It holds the disk's lock meanwhile, so the workload cannot start: Conflict.

    pack, unpack     the stream goes through a pipe; a machine's is turned into a tar here, and a tar into a machine's
    changes          the top comes without content, as a tree of files with holes, and is compared with the layers
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

from mamushka.errors import Conflict, GuestFault, Invalid, NotFound
from mamushka.runtime import STOPPED, Bundle, Stdio
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.machine.agent.tree import Entry
    from mamushka.machine.runtime import MachineRuntime
    from mamushka.spec.tar import Member

_READ = 1 << 18
# ext4 with blocks of 4 KiB, on the host, has no larger files; nothing is ever written to them here.
_HOLE_MAX = (16 << 40) - 4096
# A disk of 10 GiB, as a top is made, has room for 655,360 files: one for each 16 KiB (mke2fs.conf).
_ENTRIES_MAX = 1 << 20
# What a tree that no disk can have comes to here: a name twice, above the top, or below what is no directory.
_NO_TREE = (errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG)
_HELPER = "files-"


@value
class Asked:
    """A machine that answers: its name there, and where its container's root is, empty for one that has its own."""

    runtime: MachineRuntime
    id: str
    root: str = ""


class MachineFiles:
    """Of a root that only a machine can read; see ``copy.Files``."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine, self._workload = engine, workload

    def pack(self, path: str, name: str | None) -> Iterator[bytes]:
        from mamushka.storage.make import FOREIGN_XATTRS

        parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
        top = os.fsencode(name) if name is not None else parts[-1] if parts else b""
        stream = _pack(self._engine, self._workload, path, top, FOREIGN_XATTRS)
        first = next(stream)
        return _with(first, stream)

    def unpack(self, path: str, archive: Iterable[bytes], owner: tuple[int, int] | None) -> None:
        from mamushka.machine import control, files

        reading, writing = os.pipe2(os.O_CLOEXEC)
        with _asked(self._engine, self._workload) as asked, open(writing, "wb", buffering=0) as pipe:
            try:
                line = asked.runtime.copy(asked.id, files.UNPACK, path, reading, root=asked.root)
            finally:
                os.close(reading)
            try:
                broken = False
                try:
                    for piece in _stream(archive, owner):
                        pipe.write(piece)
                except BrokenPipeError:  # the machine says why
                    broken = True
                pipe.close()
                control.reply_of(line)
                if broken:
                    raise Conflict(f"{self._workload.name} took only a part of what was copied to {path}")
            finally:
                line.close()

    def stat(self, path: str) -> Mapping[str, object]:
        return {**self._listed(path)[0], "name": os.path.basename(os.path.normpath(path))}

    def entries(self, path: str) -> list[Mapping[str, object]]:
        itself, *below = self._listed(path)
        if not stat.S_ISDIR(itself["mode"]):
            raise Invalid(f"not a directory: {path!r}")
        return below

    def _listed(self, path: str) -> list[Mapping[str, Any]]:
        """What is at a path, first, with an empty name, and what that contains: name, size, mode, mtime, link."""
        from mamushka.machine import files

        with _asked(self._engine, self._workload) as asked:
            found = asked.runtime.ask(asked.id, "files", action=files.LIST, path=path, root=asked.root)
        return [
            {"name": str(item["name"]), "size": int(item["size"]), "mode": int(item["mode"]),
             "mtime": int(item["mtime"]) / 1e9, "link": str(item["link"])}
            for item in found
        ]  # fmt: skip

    def remove(self, path: str, *, recursive: bool) -> None:
        from mamushka.machine import files

        with _asked(self._engine, self._workload) as asked:
            asked.runtime.ask(asked.id, "files", action=files.REMOVE, path=path, root=asked.root, recursive=recursive)

    def changes(self) -> list[tuple[str, str]]:
        from mamushka.engine.rootfs import lowers, mount_points
        from mamushka.engine.staging import Staging
        from mamushka.machine.layers import UPPER
        from mamushka.storage.snapshot import Snapshot

        engine, workload = self._engine, self._workload
        with Staging(engine) as staging:
            upper = f"{staging.path}/upper"
            os.mkdir(upper)
            with _asked(engine, workload) as asked:
                _show(_tree(asked, "/", root=UPPER, content=False), upper)
            below = lowers(engine, workload.image_id, workload.layers)
            return Snapshot("", upper, "", below).changes(mount_points(workload))


def _with(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _pack(engine: Engine, workload: Workload, path: str, top: bytes, foreign: tuple[str, ...]) -> Iterator[bytes]:
    from mamushka.machine.agent import tree
    from mamushka.spec.tar import REGULAR
    from mamushka.spec.tar_write import END, header, padding

    names, left, wanted = tree.Names(), 0, False
    with _asked(engine, workload) as asked:
        for part in _tree(asked, path):
            if isinstance(part, bytes):
                if wanted:
                    yield part
                continue
            whole = part.name if not top else top + b"/" + part.name if part.name else top
            member = tree.member(part, whole or b".", names.first(part, whole), foreign=foreign)
            # Another name of a file has no content in a tar; in the machine's stream it has.
            wanted = member is not None and member.kind == REGULAR
            head = header(member) if member is not None else b""
            head, left = padding(left) + head, part.size if wanted else 0
            if head:
                yield head
        yield padding(left)
    yield END


def _tree(asked: Asked, path: str, *, root: str = "", content: bool = True) -> Iterator[Entry | bytes]:
    """What a machine packs, as it comes."""
    from mamushka.machine import control, files
    from mamushka.machine.agent.tree import Unpacker

    reading, writing = os.pipe2(os.O_CLOEXEC)
    with open(reading, "rb", buffering=0) as pipe:
        try:
            line = asked.runtime.copy(asked.id, files.PACK, path, writing, root=root or asked.root, content=content)
        finally:
            os.close(writing)
        try:
            unpacker = Unpacker(content=content)
            while data := pipe.read(_READ):
                yield from unpacker.feed(data)
            control.reply_of(line)
            unpacker.end()
        finally:
            line.close()


def _stream(archive: Iterable[bytes], owner: tuple[int, int] | None) -> Iterator[bytes]:
    """A tar as a machine takes it: directories get their attributes when all that is in them is there."""
    from mamushka.machine.agent import tree
    from mamushka.spec.tar import DIRECTORY, LINK, REGULAR, Reader

    reader = Reader(archive)
    directories: dict[bytes, Member] = {}
    for member in reader:
        name = _inside(member.name)
        if owner is not None:
            member = member._replace(uid=owner[0], gid=owner[1])
        if not name:  # the directory that is copied into keeps its attributes
            continue
        member = member._replace(name=name, link=_inside(member.link) if member.kind == LINK else member.link)
        if member.kind == DIRECTORY:
            directories[name] = member
            yield tree.item(member._replace(mode=0o755, xattrs=()))
            continue
        yield tree.item(member)
        if member.kind == REGULAR:
            yield from tree.pieces(reader.pieces())
    for name in sorted(directories, reverse=True):
        yield tree.item(directories[name])


def _inside(name: bytes) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Invalid(f"the archive has a member {name[:200]!r}, which leads out of the directory")
    return b"/".join(parts)


def _show(parts: Iterator[Entry | bytes], top: str) -> None:
    """A tree without content: what a stranger wrote is names, sizes and attributes here, and no link is followed."""
    from mamushka.linux.fd import open_beneath

    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directories: list[Entry] = []
    count = 0
    try:
        for part in parts:
            if isinstance(part, bytes) or not part.name:
                continue
            count += 1
            if count > _ENTRIES_MAX:
                raise GuestFault(f"the guest's agent sent a tree of more than {_ENTRIES_MAX} files")
            parent, _, base = part.name.rpartition(b"/")
            at = open_beneath(root, parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _make(part, at, base)
            finally:
                os.close(at)
            if stat.S_ISDIR(part.mode):
                directories.append(part)
        for part in reversed(directories):
            fd = open_beneath(root, part.name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.utime(fd, ns=(part.mtime_ns, part.mtime_ns))
            finally:
                os.close(fd)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_TREE:
            raise
        raise GuestFault(f"the guest's agent sent a tree that cannot be: {error}") from error
    finally:
        os.close(root)


def _make(entry: Entry, at: int, base: bytes) -> None:
    from mamushka.linux import xattr

    if stat.S_ISDIR(entry.mode):
        os.mkdir(base, 0o700, dir_fd=at)
    elif stat.S_ISREG(entry.mode):
        fd = os.open(base, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        try:
            os.ftruncate(fd, min(entry.size, _HOLE_MAX))
        finally:
            os.close(fd)
    elif stat.S_ISLNK(entry.mode):
        os.symlink(entry.link, base, dir_fd=at)
    else:
        # include/linux/kdev_t.h: 12 bits of major, 20 of minor
        device = os.makedev(entry.device >> 32 & 0xFFF, entry.device & 0xFFFFF)
        os.mknod(base, stat.S_IFMT(entry.mode) | 0o600, device, dir_fd=at)
    os.chown(base, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(base, stat.S_IMODE(entry.mode), dir_fd=at)
    for name, content in entry.xattrs:
        if not name.startswith("security."):
            xattr.set_at(at, base, name, content)
    os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=at, follow_symlinks=False)


# The machine that is asked


@contextmanager
def _asked(engine: Engine, workload: Workload) -> Iterator[Asked]:
    """The workload's own machine where it runs; else one on its disks, for as long as it is asked."""
    from mamushka.engine.machines import open_machines
    from mamushka.engine.workload import ACTIVE

    runtime = open_machines(engine.paths.machines)
    if workload.status in ACTIVE:
        yield Asked(runtime, workload.id)
        return
    from mamushka.machine.layers import ROOT

    id = f"{_HELPER}{workload.id[:12]}-{os.urandom(4).hex()}"
    reading, writing = os.pipe2(os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            started = runtime.run(id, _bundle(engine, workload, id), Stdio(reading, null, null))
        finally:
            os.close(reading)
            os.close(null)
        try:
            yield Asked(runtime, id, ROOT)
        finally:
            os.close(writing)  # what it waits for, also where this process is killed: its disk is in order then
            writing = -1
            os.waitpid(started.pid, 0)
            os.close(started.pidfd)
            runtime.delete(id, force=True)
    finally:
        if writing >= 0:
            os.close(writing)


def _bundle(engine: Engine, workload: Workload, id: str) -> Bundle:
    """The workload's disks, and the guest's own first process once more, which waits until nobody asks any more."""
    from mamushka.container.defaults import NAMESPACES
    from mamushka.engine.bundle import told
    from mamushka.engine.machine_root import disks
    from mamushka.spec.runtime import VERSION, Config, Linux, Mount, Process, Resources, Root
    from mamushka.spec.runtime import Memory as Limit

    memory = workload.settings.limits.memory
    config = Config(
        VERSION,
        Process(args=("/proc/self/exe", "--hold"), cwd="/"),
        Root("rootfs"),
        mounts=(Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),),
        annotations=told(workload.settings),
        linux=Linux(
            cgroups_path=f"/mamushka/{id}",
            namespaces=NAMESPACES,
            resources=Resources(memory=Limit(limit=memory)) if memory else None,
        ),
    )
    return Bundle(workload.directory, config, disks(engine, workload))


def clean(engine: Engine) -> None:
    """Remove what is left of such machines whose asker was killed. They have ended by themselves."""
    from mamushka.engine.machines import open_machines

    try:
        names = [name for name in os.listdir(engine.paths.machines) if name.startswith(_HELPER)]
    except FileNotFoundError:
        return
    runtime = open_machines(engine.paths.machines) if names else None
    for name in names:
        assert runtime is not None
        try:
            if runtime.state(name).status == STOPPED:
                runtime.delete(name, force=True)
        except NotFound:
            pass
