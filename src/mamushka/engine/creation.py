"""Making a workload that does not run yet: everything about it is decided here and written down."""

from __future__ import annotations

import os

from mamushka import document, trace
from mamushka.engine import bundle, host, ids, limits, logs, restart, rootfs, runtimes, userns, wiring
from mamushka.engine.mounts import anonymous
from mamushka.engine.paths import write_json
from mamushka.engine.state import Row
from mamushka.engine.workload import Workload, record
from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.linux import lock
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.engine import Engine
    from mamushka.engine.images import ImageSummary
    from mamushka.engine.settings import Settings

# Names are drawn at random; that so many in a row are taken does not happen by chance.
_ATTEMPTS = 10


def create(engine: Engine, settings: Settings) -> str:
    """See Engine.create."""
    _check(settings)
    engine.state.open()  # a database that must be rebuilt is rebuilt before there is a directory without a row
    if "vm" in settings.runtime:
        from mamushka.engine import kernel_image

        settings = kernel_image.settle(engine, settings)
    if settings.rootfs:
        from mamushka.engine import directory

        workload = _make(engine, settings, directory.image(settings.image))
    elif settings.image == host.NAME:
        workload = _make(engine, settings, host.image(settings.platform))
    else:
        with engine.images.lease():  # what is chosen now is not removed before the row says that it is used
            workload = _make(engine, settings, engine.images.get(settings.image, platform=settings.platform))
    trace.event("workload.create", id=workload.id, name=workload.name, image=workload.image_name)
    return workload.id


def _make(engine: Engine, settings: Settings, image: ImageSummary) -> Workload:
    workload = _design(engine, settings, image)
    gate = os.open(engine.paths.gate, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock.take(gate, shared=True, wait=True)  # keeps gc.orphans away until the row stands for the directory
        workload = _volumes(engine, workload)
        try:
            _make_directory(engine, workload)
            _insert(engine, workload)
        except BaseException:
            engine.snapshots.remove(workload.id)
            raise
    finally:
        os.close(gate)
    return workload


def _check(settings: Settings) -> None:
    """What can be refused before anything is made."""
    limits.check(settings.limits)
    restart.check(settings.restart)
    logs.options(settings.log_driver, settings.log_options)
    wiring.mode(settings)
    if settings.remove and settings.restart.policy != "no":
        raise Invalid("conflicting options: --restart and --rm")
    if settings.health is not None and settings.health.test not in ((), ("NONE",)):
        raise Unsupported(
            "health checks are not part of this version",
            hint="leave out --health-cmd; a restart policy acts when the program ends",
        )
    if userns.mapped(settings):
        userns.check(settings)
    if settings.namespaces.ipc.startswith("container:"):
        raise Unsupported(
            f"cannot share memory with {settings.namespaces.ipc}: /dev/shm of another workload cannot be mounted yet",
            hint="--ipc host, or a volume that both mount",
        )
    if settings.name:
        ids.check_name(settings.name)


def _design(engine: Engine, settings: Settings, image: ImageSummary) -> Workload:
    from time import time

    config: Any = image.config.get("config") or {}
    plan = bundle.blueprint(settings, config)
    runtime, reason = runtimes.choose(settings.runtime, settings.annotations.get(runtimes.KERNEL, ""))
    id = ids.new_id()
    directory = engine.paths.workload(id)
    host_named = wiring.mode(settings) == "host" or settings.namespaces.uts == "host"
    return Workload(
        id=id,
        name=ids.check_name(settings.name) if settings.name else ids.random_name(),
        settings=replace(settings, labels=plan.labels),
        image_id=image.id,
        image_name=settings.image,
        command=plan.command,
        environment=plan.environment,
        status="created",
        created=time(),
        runtime=runtime,
        runtime_reason=reason,
        log_path=f"{directory}/{id}-json.log" if settings.log_driver != "none" else "",
        hostname=settings.hostname or (os.uname().nodename if host_named else id[:12]),
        directory=directory,
        image_volumes=plan.volumes,
        exposed=tuple(sorted({*plan.exposed, *settings.expose})),
        user=plan.user,
        working_directory=plan.working_directory,
        stop_signal=plan.stop_signal,
        layers=image.layers,
    )


def _volumes(engine: Engine, workload: Workload) -> Workload:
    """Make the volumes it names, and those that the image declares."""
    settings = workload.settings
    found = [
        (item.destination, engine.volumes.create(item.source, labels=item.labels).name)
        for item in settings.mounts
        if item.kind == "volume"
    ]
    found += [(path, engine.volumes.create().name) for path in anonymous(settings, workload.image_volumes)]
    return replace(workload, volumes=tuple(found)) if found else workload


def _make_directory(engine: Engine, workload: Workload) -> None:
    engine.snapshots.create(workload.id, rootfs.lowers(engine, workload.image_id, workload.layers))
    os.close(os.open(f"{workload.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    write_json(f"{workload.directory}/workload.json", record(workload))


def _insert(engine: Engine, workload: Workload) -> None:
    from mamushka.engine.gc import sweep

    for attempt in range(_ATTEMPTS):
        try:
            _insert_row(engine, workload)
            return
        except Conflict:
            if workload.settings.name:
                if attempt:
                    raise
                sweep(engine)  # the name may be that of one that has ended and was to be removed
            else:
                workload = replace(workload, name=ids.random_name(attempt + 1))
                write_json(f"{workload.directory}/workload.json", record(workload))
    raise Conflict(f"{_ATTEMPTS} random names are taken", hint="give the workload a name with --name")


def _insert_row(engine: Engine, workload: Workload) -> None:
    raw = document.dump(record(workload)).decode()
    with engine.state.transaction() as state:
        state.insert(Row(workload.id, workload.name, "created", workload.created, raw, "{}"))
        attributes = {"name": workload.name, "image": workload.image_name}
        state.add_event(workload.created, "workload", "create", workload.id, attributes)
