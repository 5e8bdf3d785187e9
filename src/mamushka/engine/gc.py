"""Taking over what shims tell, and repairing what killed processes left. Any process may do it, at any time.

``settle`` reads the news that shims wrote: cheap, and nearly always there is none. ``sweep`` asks for each workload
that should be alive whether its shim holds the lock. ``orphans`` removes directories that no row stands for.
"""

from __future__ import annotations

import os

from mamushka import document, trace
from mamushka.engine import wiring
from mamushka.engine.paths import read_json
from mamushka.engine.removal import forget, give_up, release, remove, remove_socket
from mamushka.engine.workload import ACTIVE, load
from mamushka.errors import NotFound
from mamushka.linux.process import initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.engine import Engine
    from mamushka.engine.state import Row, State
    from mamushka.engine.workload import Workload

# Docker's containerd reports this for a process whose end nobody saw.
UNKNOWN = {"code": 255}


def settle(engine: Engine) -> None:
    """Take over the news."""
    names = sorted(name for name in os.listdir(engine.paths.news) if not name.startswith("."))
    for name in names:
        path = f"{engine.paths.news}/{name}"
        news = read_json(path)
        if news is not None:  # else another process was faster
            id, _, number = name.partition(".")
            _take_over(engine, id, number, news)
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def _take_over(engine: Engine, id: str, number: str, news: dict[str, Any]) -> None:
    gone: Workload | None = None
    with engine.state.transaction() as state:
        try:
            row = state.find(id)
        except NotFound:
            return  # taken over and removed before
        known = document.parse(row.news.encode(), "news")
        if known.get("number", "") >= number:
            return
        if row.status == "starting":  # it ended before its starter could tell
            tell_start(state, load(row), news["started"])
        for time, action, attributes in news.pop("events"):
            state.add_event(time, "workload", action, id, attributes)
        if news["removed"]:
            gone = load(row)
        status = "removing" if news["removed"] else news["status"]
        _change(state, id, status, {**known, **news, "number": number})
    if gone is not None:
        give_up(engine, gone, volumes=True)
        forget(engine, gone, news["finished"])
    elif news["status"] == "exited":
        release(engine, load(row))


def tell_start(state: State, workload: Workload, when: float) -> None:
    """The event of a start. Whoever moves a workload on from ``starting`` tells it, so it stands before the end."""
    attributes = {"name": workload.name, "image": workload.image_name}
    state.add_event(when, "workload", "start", workload.id, attributes)


def _change(state: State, id: str, status: str, news: dict[str, Any]) -> None:
    state.change(id, status=status, news=document.dump(news).decode())


# A workload's lock file has two: who keeps it alive holds LIFE, who starts or removes it passes through DOOR. So
# whoever holds the door and finds the workload at rest, with its life locked, waits for an end and not for a life.
LIFE, DOOR = 0, 1


def open_lock(engine: Engine, id: str) -> int:
    """The workload's lock file. NotFound when its directory is gone."""
    try:
        return os.open(f"{engine.paths.workload(id)}/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no such container: {id}") from None


def held(engine: Engine, id: str) -> bool:
    """Whether a process holds the workload's lock: its shim, or who is starting or removing it."""
    from mamushka.linux import lock

    try:
        fd = open_lock(engine, id)
    except NotFound:
        return False
    try:
        return lock.held(fd)
    finally:
        os.close(fd)


def sweep(engine: Engine, rows: list[Row] | None = None) -> bool:
    """Repair the workloads that should have a shim and have none; whether there was one."""
    settle(engine)
    repaired = False
    if rows is None and os.path.isdir(engine.paths.staged):
        from mamushka.engine import staging

        staging.sweep(engine)
    for row in rows if rows is not None else engine.state.rows(*ACTIVE, "removing"):
        if not held(engine, row.id) and _repair(engine, row.id):
            repaired = True
            _restore_wires(engine, load(row))
    return repaired


def _restore_wires(engine: Engine, workload: Workload) -> None:
    """A killed shim took nothing down: links and bridges that nobody needs any more go now."""
    if wiring.mode(workload.settings) == "bridge":
        from mamushka.engine.plugging import restore

        restore(engine.networks)


def _repair(engine: Engine, id: str) -> bool:
    """With the lock in hand look again, then finish what was begun."""
    from mamushka.linux import lock

    fd = -1
    try:
        fd = open_lock(engine, id)
    except NotFound:
        pass  # its directory is gone: only the row is left, and whatever others hold
    try:
        if fd >= 0 and not lock.take(fd):
            return False
        settle(engine)
        try:
            row = engine.state.find(id)
        except NotFound:
            return False
        return finish(engine, row)
    finally:
        if fd >= 0:
            os.close(fd)


def finish(engine: Engine, row: Row) -> bool:
    """Finish what a killed process began; the caller holds the lock. Whether there was something."""
    if row.status not in ACTIVE and row.status != "removing":
        return False
    workload = load(row)
    if row.status in ("running", "paused") and lives(engine, workload):
        return False
    trace.event("workload.repair", id=row.id, status=row.status)
    if row.status == "removing" or workload.settings.remove or not os.path.isdir(engine.paths.workload(row.id)):
        remove(engine, row, volumes=False)
        return True
    engine.runtime(workload.runtime).delete(row.id, force=True)
    release(engine, workload)
    remove_socket(engine, row.id)
    _record_loss(engine, row)
    return True


def lives(engine: Engine, workload: Workload) -> bool:
    """Whether the workload runs on although its shim was killed."""
    try:
        return engine.runtime(workload.runtime).state(workload.id).status in ("running", "paused")
    except NotFound:
        return False


def _record_loss(engine: Engine, row: Row) -> None:
    from time import time

    news = document.parse(row.news.encode(), "news")
    if row.status == "starting":
        status = "exited" if news.get("started") else "created"
    else:
        status = "exited"
        news |= {"exit": UNKNOWN, "finished": time(), "pid": 0}
        news["error"] = "its shim was killed or the host restarted: how it ended is not known"
    with engine.state.transaction() as state:
        _change(state, row.id, status, news)
        if status == "exited":
            state.add_event(time(), "workload", "die", row.id, {"name": row.name, "exitCode": "255"})


def orphans(engine: Engine) -> None:
    """Remove what belongs to workloads that were never finished being created, or whose end was cut short."""
    from mamushka.linux import lock

    if set(os.listdir(engine.paths.workloads)) <= engine.state.ids():
        return
    gate = os.open(engine.paths.gate, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock.take(gate, wait=True)  # nobody is creating one now
        known = engine.state.ids()
        for id in set(engine.snapshots.ids()) - known:
            engine.runtime("container").delete(id, force=True)
            if os.path.isdir(f"{engine.paths.machines}/{id}"):
                engine.runtime("vm").delete(id, force=True)
            remove_socket(engine, id)
        engine.snapshots.clean(known)
    finally:
        os.close(gate)


def reconcile(engine: Engine) -> None:
    """See Engine.reconcile."""
    sweep(engine)
    orphans(engine)
    if initial():  # else there are no links and no rules of ours
        from mamushka.engine.plugging import restore

        restore(engine.networks)
    if os.path.isdir(engine.paths.machines):
        from mamushka.engine.machine_files import clean

        clean(engine)
    engine.layers.clean()
    engine.volumes.clean()


def rebuild(engine: Engine, state: State) -> None:
    """Fill an empty database from the workloads' directories."""
    from mamushka.engine.state import Row

    for id in engine.snapshots.ids():
        directory = engine.paths.workload(id)
        record = read_json(f"{directory}/workload.json")
        if record is None:
            continue
        news = read_json(f"{directory}/status.json") or {}
        news.pop("events", None)
        alive = held(engine, id)
        status = "running" if alive else news.get("status", "created")
        if alive:
            running = engine.runtime(record.get("runtime", "container")).state(id)
            news |= {"pid": running.pid, "started": running.created}
        raw, told = document.dump(record).decode(), document.dump(news).decode()
        state.insert(Row(id, record["name"], status, record["created"], raw, told))
