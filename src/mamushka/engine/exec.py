"""A further process in a running workload. A shim is forked for it alone, outlives the caller, and ends with it."""

from __future__ import annotations

import os

from mamushka.engine import bundle, frames, gc, ids, shim, users
from mamushka.engine.attach import Connection, pair
from mamushka.engine.ending import not_running, running
from mamushka.engine.launch import launch_exec
from mamushka.engine.pump import Client, Pump
from mamushka.errors import Conflict, Invalid, MamushkaError, NotFound
from mamushka.runtime import NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.spec.runtime import Process


def execute(
    engine: Engine,
    identifier: str,
    command: Sequence[str],
    *,
    environment: Sequence[str],
    working_directory: str,
    user: str,
    privileged: bool,
    terminal: bool,
    stdin: bool,
    size: tuple[int, int] | None,
    detach: bool,
) -> Connection:
    """See Engine.exec."""
    if not command:
        raise Invalid("no exec command specified")
    workload = running(engine, identifier)
    if workload.status == "paused":
        raise Conflict(
            f"container {workload.name} is paused, unpause the container before exec",
            hint=f"mamushka unpause {workload.name}",
        )
    account = _account(engine, workload, user)
    process = bundle.process(
        workload,
        command,
        account,
        terminal=terminal,
        variables=environment,
        working_directory=working_directory,
        privileged=privileged,
        size=size,
    )
    id = ids.new_id()
    ours, theirs = pair()
    flags = 0 if detach else frames.OUTPUT | (frames.INPUT if stdin else 0)

    def serve() -> None:
        _serve(engine, workload, process, theirs, flags, stdin)

    try:
        shim.fork(serve, (theirs,))
    finally:
        os.close(theirs)
    connection = Connection(id, ours)
    try:
        connection.greet()
    except BaseException as error:
        connection.close()
        if isinstance(error, NotRunning) or (
            isinstance(error, MamushkaError | OSError) and not gc.lives(engine, workload)
        ):
            raise not_running(workload) from error
        raise
    _event(engine, workload, id, command)
    return connection


def _account(engine: Engine, workload: Workload, user: str) -> users.Account:
    """Looked up in the root as the workload sees it now."""
    try:
        root = _open_root(engine, workload)
    except NotFound:
        raise not_running(workload) from None
    try:
        return users.find(root, user or workload.user, workload.settings.groups)
    finally:
        os.close(root)


def _open_root(engine: Engine, workload: Workload) -> int:
    if workload.runtime == "vm":
        from mamushka.engine.machine_root import imaged, open_accounts

        if imaged(engine, workload):
            return open_accounts(engine, workload)
    return engine.runtime(workload.runtime).open_root(workload.id)


def _serve(engine: Engine, workload: Workload, process: Process, theirs: int, flags: int, stdin: bool) -> None:
    from time import time

    pump = Pump()
    pump.clients.append(Client(theirs, flags | (frames.ONCE if flags & frames.INPUT else 0)))
    try:
        streams = launch_exec(engine.runtime(workload.runtime), workload.id, process, stdin=stdin)
    except BaseException as error:
        pump.tell(frames.failed(error))
        pump.close()
        return
    started, now = streams.started, time()
    pump.adopt(
        started.pid,
        started.pidfd,
        started=now,
        outputs=streams.outputs,
        stdin=streams.stdin,
        console=streams.console,
    )
    pump.tell(frames.started(started.pid, now))
    pump.run()
    assert pump.exit is not None
    pump.tell(frames.exit(pump.exit))
    pump.linger()
    pump.close()


def _event(engine: Engine, workload: Workload, id: str, command: Sequence[str]) -> None:
    from time import time

    attributes = {"name": workload.name, "image": workload.image_name, "execID": id}
    action = f"exec_start: {' '.join(command)}"[:4096]
    engine.state.add_event(time(), "workload", action, workload.id, attributes)
