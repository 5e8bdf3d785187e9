"""A checkpoint as one tar file, for another store or machine to go on from.

    workload.json     what was asked of the workload, and which image it is of
    root.tar          what it changed in its root, as a layer; none where nothing was wanted
    checkpoint/…      what the runtime has written: plain files

The image itself does not travel: it must be there, the very same, since the processes have its files open. Nor do
volumes and networks: those of the same names are used. Names in the file are checked, so that it is written nowhere
else; but criu makes what its files say, rights and mounts included: who starts from it trusts its maker like root.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile

from mamushka import document
from mamushka.engine import checkpoints, host
from mamushka.engine.records import decode, encode
from mamushka.engine.settings import Settings
from mamushka.errors import Conflict, Invalid, NotFound
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


def export(engine: Engine, identifier: str, path: str, options: CheckpointOptions, *, root: bool) -> None:
    """Checkpoint a running workload into a file, which is whole or not there; with ``root`` also what it changed."""
    workload = engine.inspect(identifier)
    unfinished = f"{path}.unfinished"
    with tempfile.TemporaryDirectory(prefix="checkpoint", dir=engine.paths.data) as above:
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
            with open(unfinished, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _put_note(tar, workload)
                if root:
                    _put_root(tar, engine, workload, above)
                tar.add(made.directory, _STATE)
            os.rename(unfinished, path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise
        finally:
            if paused:
                engine.unpause(workload.id)


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
                shutil.copyfileobj(content, file)


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
