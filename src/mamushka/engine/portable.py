"""A checkpoint as one tar file, for another store or machine to go on from.

    workload.json     what was asked of the workload, and which image it is of
    root.tar          what it changed in its root, as a layer; none where nothing was wanted, or a machine's disk has it
    checkpoint/…      what the runtime has written: plain files. Those with holes, a machine's memory and disk, are
                      members as GNU tar writes them (--sparse-version=1.0), so it unpacks them too

The image itself does not travel: it must be there, the very same, since the processes have its files open. Nor do
volumes and networks: those of the same names are used. Names in the file are checked, so that it is written nowhere
else; but criu makes what its files say, rights and mounts included: who starts from it trusts its maker like root. A
machine's state is for the same kind of processor, and of its image the very same bytes must be there: the same version
of this program made them.
"""

from __future__ import annotations

import os
import tarfile
import tempfile

from mamushka import document
from mamushka.engine import checkpoints, host
from mamushka.engine.records import decode, encode
from mamushka.engine.settings import Settings
from mamushka.engine.staging import Staging
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.linux.fallocate import data
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.runtime import CheckpointOptions

NAME = "checkpoint"
_VERSION = 1
_NOTE, _ROOT, _STATE = "workload.json", "root.tar", "checkpoint"
_NOTE_MAX = document.SIZE_MAX
# Files of one checkpoint: some for each process, of which a container may have as many as its limit of pids.
_FILES_MAX = 1 << 20
_BLOCK = 512  # of a tar file, and what st_blocks counts
_PIECE = 1 << 20


def export(engine: Engine, identifier: str, path: str, options: CheckpointOptions, *, root: bool) -> None:
    """Checkpoint a running workload into a file, which is whole or not there; with ``root`` also what it changed."""
    workload = engine.inspect(identifier)
    root = root and workload.runtime != "vm"
    unfinished = f"{path}.unfinished"
    with Staging(engine) as staging:
        above = staging.path
        # The root is read when nothing changes it any more: after the end, which removes a workload of --rm; or paused.
        if workload.settings.remove and root and not options.leave_running:
            raise Conflict(
                f"cannot export {workload.name} with its root: it is removed when it ends (--rm)",
                hint="--ignore-rootfs, or --leave-running",
            )
        paused = root and options.leave_running and workload.status != "paused"
        if paused:
            engine.pause(workload.id)
        try:
            made = checkpoints.create(engine, workload.id, NAME, options, directory=above, passing=True)
            with _private(unfinished) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _put_note(tar, workload)
                if root:
                    _put_root(tar, engine, workload, above)
                for entry in sorted(os.scandir(made.directory), key=lambda entry: entry.name):
                    if entry.is_file(follow_symlinks=False):
                        _put_file(tar, f"{_STATE}/{entry.name}", entry.path)
            os.rename(unfinished, path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise
        finally:
            if paused:
                engine.unpause(workload.id)


def _private(path: str) -> IO[bytes]:
    """A program's memory is in it."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _put_note(tar: tarfile.TarFile, workload: Workload) -> None:
    note = {
        "version": _VERSION,
        "name": workload.name,
        "image": workload.image_id,
        "runtime": workload.runtime,
        "hostname": workload.hostname,
        "settings": encode(workload.settings),
    }
    raw = document.dump(note)
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        _put(tar, _NOTE, file, len(raw))


def _put_root(tar: tarfile.TarFile, engine: Engine, workload: Workload, above: str) -> None:
    from mamushka.engine.rootfs import snapshot

    with tempfile.TemporaryFile(dir=above) as file:
        for chunk in snapshot(engine, workload).pack():
            file.write(chunk)
        _put(tar, _ROOT, file, file.tell())


def _put(tar: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    file.seek(0)
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, file)


def _put_file(tar: tarfile.TarFile, name: str, path: str) -> None:
    """A file, and of one with holes only the rest. GNU tar manual, "Sparse Formats"; PAX format, version 1.0."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_blocks * _BLOCK >= found.st_size:
            _put(tar, name, file, found.st_size)
            return
        parts = [(begin, end - begin) for begin, end in data(file.fileno(), 0, found.st_size)]
        if not parts or sum(parts[-1]) < found.st_size:
            parts.append((found.st_size, 0))
        head = "".join(f"{number}\n" for part in [(len(parts),), *parts] for number in part).encode()
        head += bytes(-len(head) % _BLOCK)
        member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
        member.size, member.mode = len(head) + sum(length for _, length in parts), 0o600
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(found.st_size),
        }
        tar.addfile(member, _Parts(head, file, parts))  # type: ignore[arg-type]


class _Parts:
    """Parts of a file one behind the other, behind a head; to be read."""

    def __init__(self, head: bytes, file: IO[bytes], parts: list[tuple[int, int]]) -> None:
        self._left, self._file, self._parts = head, file, list(reversed(parts))

    def read(self, size: int) -> bytes:
        """As many bytes as that, but at the end."""
        pieces: list[bytes] = []
        while size > 0 and (self._left or self._parts):
            if not self._left:
                begin, length = self._parts.pop()
                count = min(length, _PIECE)
                self._left = os.pread(self._file.fileno(), count, begin)
                if length > count:
                    self._parts.append((begin + count, length - count))
                if not self._left:
                    continue
            pieces.append(self._left[:size])
            self._left = self._left[size:]
            size -= len(pieces[-1])
        return b"".join(pieces)


def take_in(engine: Engine, path: str, *, name: str, root: bool) -> str:
    """Make a workload from such a file, with a checkpoint called NAME; its id. Nothing is left when it fails."""
    try:
        file = tarfile.open(path, "r:")  # noqa: SIM115  closed below
    except (tarfile.TarError, OSError) as error:
        raise NotFound(
            f"cannot read the checkpoint {path}: {error}", hint="mamushka container checkpoint --export makes one"
        ) from error
    with file as tar:
        id = engine.create(_settings(engine, tar, path, name))
        try:
            workload = engine.inspect(id)
            _take(tar, path, engine, workload, root=root)
        except BaseException:
            engine.remove(id, force=True, volumes=True)
            raise
    return id


def _settings(engine: Engine, tar: tarfile.TarFile, path: str, name: str) -> Settings:
    """What is asked of the new workload; Conflict where its image is another one here."""
    first = tar.next()
    content = tar.extractfile(first) if first is not None and first.name == _NOTE and first.isreg() else None
    if content is None or first is None or first.size > _NOTE_MAX:
        raise Invalid(f"{path} is no checkpoint of a workload", hint="mamushka container checkpoint --export makes one")
    note = document.parse(content.read(), f"{_NOTE} of {path}")
    try:
        version, image, settings = note["version"], str(note["image"]), decode(Settings, note["settings"])
        settings = replace(settings, name=name or str(note["name"]), hostname=settings.hostname or note["hostname"])
    except (TypeError, KeyError) as error:
        raise Invalid(f"{_NOTE} of {path} is damaged: {error!r}") from None
    if version != _VERSION:
        raise Invalid(f"{path} is a checkpoint of version {version}, this knows {_VERSION}")
    host_named = settings.image == host.NAME
    here = host.ID if host_named else engine.images.get(settings.image, platform=settings.platform).id
    if here != image:
        raise Conflict(
            f"the checkpoint is of the image {settings.image} {image}, which is {here} here",
            hint="mamushka pull the image that it was made with, or load it from an archive of mamushka save",
        )
    return settings


def _take(tar: tarfile.TarFile, path: str, engine: Engine, workload: Workload, *, root: bool) -> None:
    state = f"{workload.directory}/checkpoints/{NAME}"
    os.makedirs(state, 0o700)
    count = 0
    for member in tar:
        count += 1
        if count > _FILES_MAX:
            raise Invalid(f"{path} has more than {_FILES_MAX} files")
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            continue
        if member.name == _ROOT:
            if root:
                _take_root(content, engine, workload)
        elif member.name.startswith(_STATE + "/"):
            target = f"{state}/{_plain(member.name.removeprefix(_STATE + '/'), path)}"
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                _take_file(content, file, member)


def _take_file(content: IO[bytes], file: IO[bytes], member: tarfile.TarInfo) -> None:
    """With holes where it has some."""
    parts: list[tuple[int, int]] = getattr(member, "sparse", None) or [(0, member.size)]
    for begin, length in parts:
        content.seek(begin)
        file.seek(begin)
        while length > 0 and (piece := content.read(min(length, _PIECE))):
            file.write(piece)
            length -= len(piece)
    file.truncate(member.size)


def _plain(name: str, path: str) -> str:
    if not name or "/" in name or name in (".", ".."):
        raise Invalid(f"{path} has a file {name!r}, where a checkpoint has none")
    return name


def _take_root(content: IO[bytes], engine: Engine, workload: Workload) -> None:
    """What was changed, as the new workload's own."""
    from mamushka.storage.apply import apply

    upper = f"{workload.directory}/upper"
    directory = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        apply(directory, iter(lambda: content.read(1 << 20), b""))
    finally:
        os.close(directory)
