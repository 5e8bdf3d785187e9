"""Stopping, killing and waiting: through the shim where it lives, and without it where it was killed."""

from __future__ import annotations

import os
import select
import signal

from mamushka.engine import frames, gc
from mamushka.engine.attach import Connection
from mamushka.engine.attach import connect as connect_shim
from mamushka.engine.workload import ACTIVE, Workload, load
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable
from mamushka.runtime import Exit, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.engine.engine import Engine

CONDITIONS = ("not-running", "next-exit", "removed")


def signal_number(name: str) -> int:
    """A signal by name, with or without SIG, or number."""
    text = name.strip().upper()
    if text.isdecimal() and 0 < int(text) < signal.NSIG:
        return int(text)
    bare = text.removeprefix("SIG")
    for base, first in (("RTMIN", signal.SIGRTMIN), ("RTMAX", signal.SIGRTMAX)):
        offset = bare.removeprefix(base)
        if bare.startswith(base) and (not offset or offset.lstrip("+-").isdecimal()):
            number = first + int(offset or 0)
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return number
    number = getattr(signal, f"SIG{bare}", 0)
    if not isinstance(number, int) or not number or bare.startswith("_"):
        raise Invalid(f"invalid signal: {name}", hint="as in TERM, SIGTERM or 15")
    return int(number)


def running(engine: Engine, identifier: str) -> Workload:
    """A workload that runs. Conflict otherwise."""
    gc.settle(engine)
    row = engine.state.find(identifier)
    workload = engine.alive(load(row))
    if workload.status not in ("running", "paused") or not workload.pid:
        raise not_running(workload)
    return workload


def not_running(workload: Workload) -> Conflict:
    """What is said of a workload that does not run, or does not any more."""
    return Conflict(f"container {workload.id} is not running", hint=f"mamushka start {workload.name}")


def connect(engine: Engine, id: str, flags: int = 0) -> Connection | None:
    """The workload's shim; None when it has none."""
    return connect_shim(id, engine.paths.shims, flags, at_end=engine.at_end(id))


def kill(engine: Engine, identifier: str, name: str) -> None:
    """See Engine.kill."""
    number = signal_number(name)
    workload = running(engine, identifier)
    if number == signal.SIGKILL:
        _be_quiet(engine, workload.id)
    try:
        engine.runtime(workload.runtime).kill(workload.id, number)
    except NotRunning as error:
        raise not_running(workload) from error
    _event(engine, workload, "kill", signal=str(number))


def stop(engine: Engine, identifier: str, timeout: float | None, name: str) -> None:
    """See Engine.stop."""
    gc.settle(engine)
    row = engine.state.find(identifier)
    if row.status not in ACTIVE:
        return
    workload = load(row)
    patience = float(workload.settings.stop_timeout) if timeout is None else timeout
    connection = connect(engine, workload.id)
    if connection is not None:
        with connection:
            connection.ask(frames.plain(frames.QUIET))
    runtime = engine.runtime(workload.runtime)
    if row.status == "paused":
        runtime.resume(workload.id)
    _send(engine, workload, signal_number(name or workload.stop_signal))
    try:
        wait_end(engine, workload.id, None if patience < 0 else patience)
    except TimeoutError:
        _send(engine, workload, signal.SIGKILL)
        wait_end(engine, workload.id, None)
    try:
        _event(engine, workload, "stop")
    except NotFound:
        pass  # it was to be removed at its end


def _send(engine: Engine, workload: Workload, number: int) -> None:
    try:
        engine.runtime(workload.runtime).kill(workload.id, number)
    except (NotFound, Conflict):
        pass  # it ended by itself


def _be_quiet(engine: Engine, id: str) -> None:
    """Tell the shim that the end is meant, so that it does not start it again."""
    connection = connect(engine, id)
    if connection is not None:
        with connection:
            connection.ask(frames.plain(frames.QUIET))


def wait_end(engine: Engine, id: str, timeout: float | None) -> Exit:
    """Until the workload has ended for good; TimeoutError before."""
    connection = connect(engine, id)
    if connection is not None:
        with connection:
            try:
                return connection.wait(timeout)
            except Unavailable:  # its shim was killed just now; the workload itself may go on
                pass
    try:
        row = engine.state.find(id)
    except NotFound:
        return Exit()
    if row.status in ACTIVE:
        _wait_alone(engine, load(row), timeout)
        gc.sweep(engine)
    try:
        return load(engine.state.find(id)).exit or Exit()
    except NotFound:
        return Exit(code=255)


def _wait_alone(engine: Engine, workload: Workload, timeout: float | None) -> None:
    """Wait for the first process of a workload whose shim is gone."""
    try:
        pid = engine.runtime(workload.runtime).state(workload.id).pid
        if not pid:  # it has ended, and only its record is left
            return
        fd = os.pidfd_open(pid)
    except (NotFound, ProcessLookupError):
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError(f"{workload.name} still runs after {timeout} s")
    finally:
        os.close(fd)


def wait(engine: Engine, identifier: str, condition: str, timeout: float | None) -> Exit:
    """See Engine.wait."""
    if condition not in CONDITIONS:
        raise Invalid(f"invalid condition: {condition!r}", hint=f"one of {', '.join(CONDITIONS)}")
    gc.settle(engine)
    row = engine.state.find(identifier)
    if condition == "removed":
        return _wait_removed(engine, row.id, timeout)
    if row.status in ACTIVE:
        return wait_end(engine, row.id, timeout)
    if condition == "next-exit":
        return _wait_started(engine, row.id, timeout)
    return load(row).exit or Exit()


def _wait_removed(engine: Engine, id: str, timeout: float | None) -> Exit:
    exit = Exit()
    with engine.changes_watch() as watch:
        while True:
            gc.settle(engine)
            try:
                exit = load(engine.state.find(id)).exit or exit
            except NotFound:
                return exit
            if not watch.wait(timeout):
                raise TimeoutError(f"{id[:12]} still exists after {timeout} s")


def _wait_started(engine: Engine, id: str, timeout: float | None) -> Exit:
    with engine.changes_watch() as watch:
        while engine.state.find(id).status not in ACTIVE:
            if not watch.wait(timeout):
                raise TimeoutError(f"{id[:12]} has not run within {timeout} s")
            gc.settle(engine)
    return wait_end(engine, id, timeout)


def remove(engine: Engine, identifier: str, *, force: bool, volumes: bool) -> None:
    """See Engine.remove."""
    from mamushka.linux import lock

    gc.settle(engine)
    id = engine.state.find(identifier).id
    try:
        door = gc.open_lock(engine, id)
    except NotFound:
        gc.sweep(engine)  # it is half removed already
        return
    try:
        lock.take(door, byte=gc.DOOR, wait=True)
        _remove(engine, id, force=force, volumes=volumes)
    except NotFound:
        pass  # it was to be removed at its end, or another process was faster
    finally:
        os.close(door)


def _remove(engine: Engine, id: str, *, force: bool, volumes: bool) -> None:
    """Past the door: nobody else starts or removes it."""
    from mamushka.engine.removal import remove as remove_all
    from mamushka.linux import lock

    row = engine.state.find(id)
    if row.status in ACTIVE:
        if force:
            _be_quiet(engine, id)
            _send(engine, load(row), signal.SIGKILL)
            wait_end(engine, id, None)
        elif not gc.sweep(engine, [row]):
            raise Conflict(
                f"cannot remove container {id}: container is {row.status}: stop the container before removing or "
                "force remove",
                hint=f"mamushka rm --force {row.name}",
            )
    life = gc.open_lock(engine, id)
    try:
        lock.take(life, wait=True)  # a shim that has told its end is about to let go
        remove_all(engine, engine.state.find(id), volumes=volumes)
    finally:
        os.close(life)


def prune(engine: Engine, filters: Mapping[str, Sequence[str]]) -> tuple[list[str], int]:
    """See Engine.prune."""
    from mamushka.engine import host, pruning
    from mamushka.engine.inspection import workloads
    from mamushka.engine.rootfs import written

    fits, rest = pruning.split(filters)
    removed: list[str] = []
    freed = 0
    for item in workloads(engine, True, rest):
        if item.status in ("created", "exited", "dead") and fits(item.created, item.settings.labels):
            size = written(item.directory)
            try:
                remove(engine, item.id, force=False, volumes=False)
            except (NotFound, Conflict):
                continue  # removed or started by another process meanwhile
            removed.append(item.id)
            freed += size
    if not filters and not any(item.image_id == host.ID for item in workloads(engine, False, {})):
        host.sweep(f"{engine.paths.data}/host")
    if not filters:
        from mamushka.engine import kernel_image
        from mamushka.engine.machines import shelf

        freed += shelf(engine.paths.made).prune()[1] + kernel_image.prune(engine)
    return removed, freed


def _event(engine: Engine, workload: Workload, action: str, **attributes: str) -> None:
    from time import time

    told = {"name": workload.name, "image": workload.image_name, **attributes}
    engine.state.find(workload.id)
    engine.state.add_event(time(), "workload", action, workload.id, told)
