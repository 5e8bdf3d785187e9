"""What changes about a workload while it exists: paused or not, its name, its limits, its restart policy."""

from __future__ import annotations

from mamushka import document
from mamushka.engine import frames, gc, ids, limits, restart, wiring
from mamushka.engine.ending import connect, not_running, running
from mamushka.engine.paths import write_json
from mamushka.engine.workload import Workload, after, load, record
from mamushka.errors import Conflict, MamushkaError, NotFound
from mamushka.values import asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.engine.engine import Engine
    from mamushka.engine.settings import Limits, Restart


def pause(engine: Engine, identifier: str) -> None:
    """See Engine.pause."""
    workload = running(engine, identifier)
    status = after(workload.status, "pause", workload.name)
    _act(engine, workload, engine.runtime(workload.runtime).pause)
    _become(engine, workload, status, "pause")


def unpause(engine: Engine, identifier: str) -> None:
    """See Engine.unpause."""
    workload = running(engine, identifier)
    status = after(workload.status, "unpause", workload.name)
    _act(engine, workload, engine.runtime(workload.runtime).resume)
    _become(engine, workload, status, "unpause")


def _act(engine: Engine, workload: Workload, act: Callable[[str], None]) -> None:
    """Whatever goes wrong with a workload that has just ended goes wrong because it has ended."""
    try:
        act(workload.id)
    except (MamushkaError, OSError) as error:
        if gc.lives(engine, workload):
            raise
        raise not_running(workload) from error


def _become(engine: Engine, workload: Workload, status: str, action: str) -> None:
    with engine.state.transaction() as state:
        state.change(workload.id, status=status)
        _event(engine, workload, action)


def rename(engine: Engine, identifier: str, name: str) -> None:
    """See Engine.rename."""
    new = ids.check_name(name)
    gc.settle(engine)
    with engine.state.transaction() as state:
        row = state.find(identifier)
        taken = state.execute("select id from workloads where name=?", (new,)).fetchone()
        if taken is not None:
            raise Conflict(
                f'the container name "/{new}" is already in use by container "{taken[0]}"',
                hint="choose another name",
            )
        workload = replace(load(row), name=new)
        _rewrite(engine, workload)
        if wiring.mode(workload.settings) == "bridge":
            from mamushka.engine import plugging

            plugging.rename(engine.networks, workload.id, new)
        _event(engine, workload, "rename", oldName=row.name)


def update(engine: Engine, identifier: str, wish: Limits | None, policy: Restart | None) -> None:
    """See Engine.update."""
    if policy is not None:
        restart.check(policy)
    gc.settle(engine)
    with engine.state.transaction() as state:
        row = state.find(identifier)
        workload = load(row)
        settings = workload.settings
        if policy is not None and settings.remove and policy.policy != "no":
            raise Conflict("restart policy cannot be updated because AutoRemove is enabled for the container")
        merged = settings.limits if wish is None else merge(settings.limits, wish)
        limits.check(merged)
        workload = replace(workload, settings=replace(settings, limits=merged, restart=policy or settings.restart))
        if row.status in ("running", "paused") and wish is not None:
            engine.runtime(workload.runtime).update(row.id, limits.resources(wish))
        _rewrite(engine, workload)
        _event(engine, workload, "update")
    if policy is not None:
        connection = connect(engine, workload.id)
        if connection is not None:
            with connection:
                connection.ask(frames.policy(policy.policy, policy.retries))


def merge(old: Limits, wish: Limits) -> Limits:
    """The old limits with those that the wish sets; setting CPUs replaces a quota and the other way round."""
    default = type(wish)()
    changes = {name: item for name, item in asdict(wish).items() if item != getattr(default, name)}
    if "cpus" in changes:
        changes |= {"cpu_period_us": 0, "cpu_quota_us": 0}
    elif "cpu_quota_us" in changes or "cpu_period_us" in changes:
        changes["cpus"] = 0.0
    return replace(old, **changes)


def _rewrite(engine: Engine, workload: Workload) -> None:
    """What it is asked to be, in its directory and in the database."""
    item = record(workload)
    engine.state.change(workload.id, name=workload.name, record=document.dump(item).decode())
    try:
        write_json(f"{workload.directory}/workload.json", item)
    except FileNotFoundError:  # it has just ended, and was to be removed
        raise NotFound(f"no such container: {workload.name}") from None


def _event(engine: Engine, workload: Workload, action: str, **attributes: str) -> None:
    from time import time

    told = {"name": workload.name, "image": workload.image_name, **attributes}
    engine.state.add_event(time(), "workload", action, workload.id, told)
