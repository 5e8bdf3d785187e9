"""Further workloads that go on from where one stands: from the very moment (fork), or from a snapshot of it (spawn).

Each is a workload like any other, asked for what the first one was asked for, but for what can belong to one alone:

    name, hostname          its own
    addresses               its own, in the same networks
    published ports         any free ones of the host's
    what it has written     a copy, which shares blocks where the file system can

A live machine is held still for as long as its memory takes to be frozen, at any size, and one copy of its disk to be
made; the further ones are made of that. Its memory goes to the others by a descriptor and is on no disk: all of them
share what none has changed. A container is written down by criu, and the others read that.

Of a maker who was killed the next one who looks takes away what was not started (staging.py); the first one runs on.
"""

from __future__ import annotations

import os
import shutil

from mamushka import trace
from mamushka.engine import checkpoints, host
from mamushka.engine.checkpoints import Checkpoint
from mamushka.engine.ending import running
from mamushka.engine.ids import check_name
from mamushka.engine.staging import Staging
from mamushka.errors import Invalid
from mamushka.runtime import CheckpointOptions
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mamushka.engine.engine import Engine
    from mamushka.engine.settings import Settings
    from mamushka.engine.workload import Workload

# Says of which workload another one is a child.
LABEL = "com.mamushka.forked-from"
_UPPER = "upper"  # in a snapshot of a container: what it had written by then
# More at once are a mistake: each is a process with a kernel, or a tree of processes.
COUNT_MAX = 1000


def snapshot(engine: Engine, identifier: str, name: str, directory: str, *, passing: bool = False) -> Checkpoint:
    """See Engine.snapshot. ``passing``: it need not outlive the workload."""
    workload = running(engine, identifier)
    name = name or _free_name(engine, workload, directory)
    options = CheckpointOptions(leave_running=True)
    if workload.runtime == "vm":
        return checkpoints.create(engine, workload.id, name, options, directory=directory, passing=passing)
    paused = workload.status != "paused"
    if paused:
        engine.pause(workload.id)  # so that what it has written and what it has in memory are of one moment
    try:
        made = checkpoints.create(engine, workload.id, name, options, directory=directory, passing=passing)
        try:
            _copy_tree(f"{workload.directory}/upper", f"{made.directory}/{_UPPER}")
        except BaseException:
            shutil.rmtree(made.directory, ignore_errors=True)
            raise
        return made
    finally:
        if paused:
            engine.unpause(workload.id)


def fork(engine: Engine, identifier: str, count: int, names: Sequence[str]) -> list[str]:
    """See Engine.fork."""
    workload = running(engine, identifier)
    _check_count(count, names)
    if workload.runtime == "vm":
        return _fork_machine(engine, workload, count, names)
    with Staging(engine) as staging:
        made = snapshot(engine, workload.id, "fork", staging.path, passing=True)
        return spawn(engine, workload, made, count, names)


def spawn(engine: Engine, workload: Workload, made: Checkpoint, count: int, names: Sequence[str]) -> list[str]:
    """See Engine.spawn."""
    _check_count(count, names)

    def prepare(id: str) -> Checkpoint:
        if workload.runtime != "vm":
            _take_tree(f"{made.directory}/{_UPPER}", f"{engine.paths.workload(id)}/upper")
        return made

    with Staging(engine) as staging:
        return _start_all(engine, _make(engine, staging, workload, count, names), staging, prepare)


def _fork_machine(engine: Engine, workload: Workload, count: int, names: Sequence[str]) -> list[str]:
    from mamushka.engine.machine_root import put
    from mamushka.engine.machines import open_machines

    with Staging(engine) as staging:
        ids = _make(engine, staging, workload, count, names)  # before it holds still
        with open_machines(engine.paths.machines).hold(workload.id) as held:
            copied = put(engine, engine.inspect(ids[0]), held.disk)
            stood = held.go_on()
            trace.event("workload.forked", id=workload.id, stood=stood)
            document = os.pread(held.state, os.fstat(held.state).st_size, 0)
            disk = os.open(copied, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for id in ids[1:]:
                    put(engine, engine.inspect(id), disk)
            finally:
                os.close(disk)
            return _start_all(engine, ids, staging, lambda id: _state(engine, id, document, held.memory))


def _state(engine: Engine, id: str, document: bytes, memory: int) -> Checkpoint:
    """What a child goes on from, in its own directory; its memory is no file there."""
    from time import time

    from mamushka.machine.state import STATE

    directory = f"{engine.paths.workload(id)}/fork"
    os.makedirs(directory, 0o700)
    with open(
        os.open(f"{directory}/{STATE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        file.write(document)
    return Checkpoint("fork", directory, time(), CheckpointOptions(memory=memory))


def _start_all(engine: Engine, ids: list[str], staging: Staging, prepare: Callable[[str], Checkpoint]) -> list[str]:
    """All, or none of them."""
    for id in ids:
        made = prepare(id)
        engine.start(id, checkpoint=made)
        if made.options.memory >= 0:
            shutil.rmtree(made.directory, ignore_errors=True)
    for id in ids:
        staging.started(id)
    return ids


def _make(engine: Engine, staging: Staging, workload: Workload, count: int, names: Sequence[str]) -> list[str]:
    """Workloads that do not run yet."""
    ids: list[str] = []
    for number in range(count):
        ids.append(engine.create(_settings(engine, workload, names[number] if names else "")))
        staging.made(ids[-1])
    return ids


def _settings(engine: Engine, workload: Workload, name: str) -> Settings:
    asked = workload.settings
    here = asked.rootfs or workload.image_id == host.ID
    same = here or workload.image_id == engine.images.get(asked.image, platform=asked.platform).id
    return replace(
        asked,
        image=asked.image if same else workload.image_id,
        name=name,
        hostname="",
        networks=tuple(replace(each, address="", address6="", mac="") for each in asked.networks),
        ports=tuple(replace(port, host_port=0, host_port_last=0) for port in asked.ports),
        labels={**asked.labels, LABEL: workload.id},
        runtime=(workload.runtime,),
    )


def _check_count(count: int, names: Sequence[str]) -> None:
    if not 1 <= count <= COUNT_MAX:
        raise Invalid(f"{count} further workloads", hint=f"from 1 to {COUNT_MAX}")
    if names and len(names) != count:
        raise Invalid(f"{len(names)} names for {count} workloads", hint="one for each, or none")
    for name in names:  # before anything is written down
        check_name(name)


def _free_name(engine: Engine, workload: Workload, directory: str) -> str:
    taken = {made.name for made in checkpoints.listing(engine, workload.id, directory=directory)}
    return next(name for name in map("snapshot{}".format, range(1, len(taken) + 2)) if name not in taken)


def _copy_tree(source: str, target: str) -> None:
    os.mkdir(target, 0o700)
    _take_tree(source, target)


def _take_tree(source: str, target: str) -> None:
    from mamushka.storage.copy import copy

    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source_fd = os.open(source, flags)
    try:
        target_fd = os.open(target, flags)
        try:
            copy(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
