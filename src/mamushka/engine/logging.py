"""Reading a workload's log while it is written."""

from __future__ import annotations

import os

from mamushka.engine.ending import connect
from mamushka.engine.inspection import inspect
from mamushka.engine.logs import Reader, choose
from mamushka.engine.workload import ACTIVE
from mamushka.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mamushka.engine.engine import Engine
    from mamushka.engine.logs import Line
    from mamushka.engine.workload import Workload


def logs(
    engine: Engine,
    identifier: str,
    *,
    follow: bool,
    since: float,
    until: float,
    tail: int,
    stdout: bool,
    stderr: bool,
) -> Iterator[Line]:
    """See Engine.logs."""
    workload = inspect(engine, identifier)
    if not workload.log_path:
        raise Unsupported(
            "configured logging driver does not support reading", hint="run it with --log-driver json-file"
        )
    streams = {name for name, wish in (("stdout", stdout), ("stderr", stderr)) if wish}

    def wanted(line: Line) -> bool:
        return line.stream in streams and line.time >= since and (not until or line.time <= until)

    return _follow(engine, workload, wanted, tail) if follow else _read(workload, wanted, tail)


def _read(workload: Workload, wanted: Callable[[Line], bool], tail: int) -> Iterator[Line]:
    reader = Reader(workload.log_path)
    try:
        yield from choose(reader.history(), wanted, tail)
    finally:
        reader.close()


def _follow(engine: Engine, workload: Workload, wanted: Callable[[Line], bool], tail: int) -> Iterator[Line]:
    """What is there, then what comes, until the shim says that it has ended."""
    from mamushka.linux.inotify import IN_CREATE, IN_MODIFY, drain, watch

    reader = Reader(workload.log_path)
    changed = watch(workload.directory, IN_MODIFY | IN_CREATE)
    connection = connect(engine, workload.id) if workload.status in ACTIVE else None
    try:
        yield from choose(reader.history(), wanted, tail)
        while connection is not None and connection.goes_on(changed):
            drain(changed)
            yield from filter(wanted, reader.lines())
        yield from filter(wanted, reader.lines())
    finally:
        os.close(changed)
        reader.close()
        if connection is not None:
            connection.close()
