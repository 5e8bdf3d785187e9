"""Checkpoints of workloads: made, listed, removed, and found again by a start.

A checkpoint is a directory with what the runtime has written and ``checkpoint.json``, which tells how it was made. It
is staged beside its place and renamed when it is whole, so one that is listed can be started from; what a killed maker
has left is swept by the next. While it is being made a lock says so, which ends with its maker: a shim whose workload
ends meanwhile knows that the end is meant, and no restart policy undoes it (shim.py).
"""

from __future__ import annotations

import os
import shutil

from mamushka.engine.ending import running, wait_end
from mamushka.engine.paths import CHECKPOINT_LOCK, CHECKPOINT_MEANT, read_json, write_json
from mamushka.engine.records import decode, encode
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.linux.lock import take
from mamushka.runtime import CheckpointOptions
from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload

_NOTE = "checkpoint.json"
_STAGED = ".staged"
_NAME_MAX = 200  # a file's name has 255 at most, and while one is made it has more than its own
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@value
class Checkpoint:
    """One of a workload's checkpoints."""

    name: str
    directory: str
    created: float
    options: CheckpointOptions = CheckpointOptions()


def create(
    engine: Engine,
    identifier: str,
    name: str,
    options: CheckpointOptions,
    *,
    directory: str = "",
    passing: bool = False,
) -> Checkpoint:
    """See Engine.checkpoint. ``passing``: it is taken elsewhere, so it need not outlive the workload."""
    from time import time

    workload = running(engine, identifier)
    settings = workload.settings
    if settings.remove and not (options.leave_running or directory or passing):
        raise Conflict(
            f"cannot checkpoint {workload.name} and keep that: it is removed when it ends (--rm)",
            hint="leave it running, or write the checkpoint elsewhere",
        )
    place = _place(workload, name, directory)
    try:
        os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
    except OSError as error:
        raise Invalid(
            f"cannot keep checkpoints in {os.path.dirname(place)}: {error.strerror}",
            hint="name a directory that can be made, or none, and it stays with the container",
        ) from error
    staged = f"{os.path.dirname(place)}/.{name}{_STAGED}"
    lock = os.open(f"{workload.directory}/{CHECKPOINT_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not take(lock):
            raise Conflict(f"another checkpoint of {workload.name} is just being made")
        if os.path.exists(place):
            raise Conflict(
                f"checkpoint with name {name} already exists for container {workload.name}",
                hint="choose another name, or remove it first",
            )
        shutil.rmtree(staged, ignore_errors=True)
        os.makedirs(staged, 0o700)
        made = Checkpoint(name, place, time(), options)
        write_json(f"{staged}/{_NOTE}", encode(made))
        if not (options.leave_running or options.pre_dump):
            take(lock, byte=CHECKPOINT_MEANT, wait=True)
        engine.runtime(workload.runtime).checkpoint(workload.id, staged, options)
        os.rename(staged, place)  # what a failure has left stays till the next attempt: criu's log is in it
        if not (options.leave_running or options.pre_dump):
            wait_end(engine, workload.id, None)
    finally:
        os.close(lock)
    engine.tell("workload", "checkpoint", workload.id, {"name": workload.name, "checkpoint": name})
    return made


def listing(engine: Engine, identifier: str, *, directory: str = "") -> list[Checkpoint]:
    """Oldest first."""
    workload = engine.inspect(identifier)
    above = directory or _home(workload)
    names = [name for name in _names(above) if not name.startswith(".")]
    found = [made for name in names if (made := _read(f"{above}/{name}", name)) is not None]
    return sorted(found, key=lambda made: made.created)


def find(engine: Engine, identifier: str, name: str, *, directory: str = "") -> Checkpoint:
    """One of them; NotFound."""
    workload = engine.inspect(identifier)
    place = _place(workload, name, directory)
    made = _read(place, name)
    if made is None:
        raise NotFound(
            f"checkpoint {name} does not exist for container {workload.name}",
            hint=f"mamushka checkpoint ls {workload.name}",
        )
    return made


def remove(engine: Engine, identifier: str, name: str, *, directory: str = "") -> None:
    """NotFound where it is not there."""
    made = find(engine, identifier, name, directory=directory)
    shutil.rmtree(made.directory)


def restoring(made: Checkpoint) -> CheckpointOptions:
    """How to go on from it: with the same ties to the outside that it was written down with."""
    options = made.options
    return replace(options, work="", parent="", pre_dump=False, page_server="", status_fd=-1, leave_running=False)


def take_disk(engine: Engine, workload: Workload, made: Checkpoint) -> None:
    """Memory and disk of a machine are of one moment: it goes on with the disk that is with the checkpoint."""
    if workload.runtime != "vm":
        return
    from mamushka.engine.machine_root import put
    from mamushka.machine.checkpoint import DISK

    try:
        disk = os.open(f"{made.directory}/{DISK}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # it has been put there already, or the checkpoint is none of a machine's, as the runtime will say
    try:
        put(engine, workload, disk)
    finally:
        os.close(disk)


def _read(directory: str, name: str) -> Checkpoint | None:
    found = read_json(f"{directory}/{_NOTE}")
    return None if found is None else replace(decode(Checkpoint, found), name=name, directory=directory)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _home(workload: Workload) -> str:
    return f"{workload.directory}/checkpoints"


def _place(workload: Workload, name: str, directory: str) -> str:
    if not name or len(name) > _NAME_MAX or not _LETTERS.issuperset(name) or name[0] == ".":
        raise Invalid(
            f"invalid checkpoint name: {name[: _NAME_MAX + 1]!r}",
            hint=f"letters, digits, _ . - and not first a dot; at most {_NAME_MAX}",
        )
    return f"{os.path.abspath(directory) if directory else _home(workload)}/{name}"
