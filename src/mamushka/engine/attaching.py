"""Attaching to a workload that runs already, with or without what it wrote before."""

from __future__ import annotations

from mamushka.engine import frames
from mamushka.engine.attach import Connection
from mamushka.engine.ending import connect, running
from mamushka.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine


def attach(engine: Engine, identifier: str, *, stdin: bool, logs: bool) -> Connection:
    """See Engine.attach."""
    workload = running(engine, identifier)
    if workload.status == "paused":
        raise Conflict(f"you cannot attach to a paused container {workload.name}", hint="unpause it first")
    flags = frames.OUTPUT | (frames.INPUT if stdin else 0)
    connection = connect(engine, workload.id, flags)
    if connection is None:
        raise Conflict(
            f"nobody serves the streams of container {workload.name}: its shim was killed",
            hint="stop it and start it again; its log has what it wrote before",
        )
    connection.greet()
    if logs:
        connection.prepend(_history(engine, workload.id))
    return connection


def _history(engine: Engine, id: str) -> list[bytes]:
    """What the log holds, as messages. A piece that was logged while we connected may come twice."""
    kinds = {"stdout": frames.OUT, "stderr": frames.ERR}
    return [frames.data(kinds[line.stream], line.data) for line in engine.logs(id)]
