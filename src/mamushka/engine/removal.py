"""Taking a workload away: what it has on disk, behind the wall, and in the other rooms."""

from __future__ import annotations

import os

from mamushka.engine.workload import load
from mamushka.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.state import Row
    from mamushka.engine.workload import Workload


def release(engine: Engine, workload: Workload) -> None:
    """It has ended: give back its addresses and ports."""
    from mamushka.engine import wiring

    wiring.leave(engine, workload)


def give_up(engine: Engine, workload: Workload, *, volumes: bool) -> None:
    """It is removed: give back all that it has in other rooms, with ``volumes`` also its anonymous volumes."""
    from mamushka.engine import wiring

    wiring.forget(engine, workload)
    named = {item.source for item in workload.settings.mounts if item.kind == "volume"}
    for name in [name for _, name in workload.volumes if volumes and name not in named]:
        try:
            engine.volumes.remove(name, force=True)
        except Conflict:
            pass  # another workload was given it by name


def remove(engine: Engine, row: Row, *, volumes: bool) -> None:
    """Remove all of it. May be begun again wherever it was interrupted; nobody else may hold its lock."""
    from time import time

    workload = load(row)
    engine.state.change(row.id, status="removing")
    engine.runtime(workload.runtime).delete(row.id, force=True)
    give_up(engine, workload, volumes=volumes or workload.settings.remove)
    remove_socket(engine, row.id)
    engine.snapshots.remove(row.id)
    forget(engine, workload, time())


def remove_socket(engine: Engine, id: str) -> None:
    """The socket of a shim that did not live to do it."""
    try:
        os.unlink(engine.paths.socket(id))
    except FileNotFoundError:
        pass


def forget(engine: Engine, workload: Workload, time: float) -> None:
    """The row and its last event, in one transaction."""
    with engine.state.transaction() as state:
        if state.delete(workload.id):
            attributes = {"name": workload.name, "image": workload.image_name}
            state.add_event(time, "workload", "destroy", workload.id, attributes)
