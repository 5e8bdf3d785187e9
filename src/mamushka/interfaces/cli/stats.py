"""``stats``: how much workloads use, once or again and again."""

from __future__ import annotations

import sys
import time

from mamushka.errors import MamushkaError
from mamushka.interfaces.cli.options import Command, flag
from mamushka.interfaces.cli.output import out
from mamushka.interfaces.cli.table import FORMAT, show
from mamushka.interfaces.docker import units
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.workload import Workload
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session
    from mamushka.machine.statistics import Sample
    from mamushka.runtime import Stats

HEADERS = {
    "ID": "CONTAINER ID", "Container": "CONTAINER", "Name": "NAME", "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
}  # fmt: skip
_DEFAULT = "ID Name CPUPerc MemUsage MemPerc NetIO BlockIO PIDs"
# A share of CPU time needs two looks; Docker's are a second apart too.
_INTERVAL = 1.0


@value
class Look:
    """What a workload uses at one time, of the monotonic clock; ``sample`` is what is counted of a machine."""

    workload: Workload
    use: Stats | None
    time: float
    sample: Sample | None = None


def stats(arguments: Arguments, session: Session) -> int:
    """Rows once, or redrawn each second until interrupted."""
    before = _look(arguments, session)
    while True:
        time.sleep(_INTERVAL)
        now = _look(arguments, session)
        headers, names = HEADERS, _DEFAULT
        if any(look.workload.runtime == "vm" for look in now.values()):
            from mamushka.interfaces.cli.machine_figures import COLUMNS

            headers, names = {**HEADERS, **COLUMNS}, " ".join((_DEFAULT, *COLUMNS))
        rows = [_row(look, before.get(name), arguments, alike=names != _DEFAULT) for name, look in now.items()]
        if not arguments.no_stream and sys.stdout.isatty():
            out("\x1b[2J\x1b[H", end="")
        show(rows, headers, arguments.format, names)
        sys.stdout.flush()
        if arguments.no_stream:
            return 0
        before = now


def _look(arguments: Arguments, session: Session) -> dict[str, Look]:
    """Each workload with its use now; one that has just ended uses nothing."""
    engine = session.engine
    if arguments.operands:
        workloads = [engine.inspect(name) for name in arguments.operands]
    else:
        workloads = engine.workloads(all=arguments.all)
    found: dict[str, Look] = {}
    for workload in workloads:
        use, sample = None, None
        if workload.status in ("running", "paused"):
            try:
                use = engine.stats(workload.id)
                sample = _count(workload, session)
            except MamushkaError:
                pass
        found[workload.id] = Look(workload, use, time.monotonic(), sample)
    return found


def _count(workload: Workload, session: Session) -> Sample | None:
    if workload.runtime != "vm":
        return None
    from mamushka.engine import figures

    return figures.sample(session.engine, workload.id)


def _row(look: Look, before: Look | None, arguments: Arguments, *, alike: bool) -> dict[str, Any]:
    """A workload's; ``alike`` where all have the columns of machines, which a program finds with machines alone."""
    row = _use(look, before, arguments)
    if look.workload.runtime != "vm" and (not alike or arguments.format == "json"):
        return row
    from mamushka.interfaces.cli import machine_figures

    figures = None
    if look.sample is not None and before is not None and before.sample is not None:
        from mamushka.machine.statistics import rates

        figures = rates(before.sample, look.sample)
    row |= machine_figures.row(figures)
    return row if figures is None else {**row, "Machine": machine_figures.document(figures)}


def _use(look: Look, before: Look | None, arguments: Arguments) -> dict[str, Any]:
    workload, use = look.workload, look.use
    identifier = workload.id if arguments.no_trunc else workload.id[:12]
    row = {"ID": identifier, "Container": identifier, "Name": workload.name}
    if use is None:
        return {**row, **dict.fromkeys(("CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"), "--")}
    last = before.use if before is not None else None
    passed = look.time - before.time if before is not None else 0.0
    share = 100.0 * (use.cpu - last.cpu) / passed if last and passed > 0 else 0.0
    limit = use.memory_limit or _memory()
    return {
        **row,
        "CPUPerc": f"{max(0.0, share):.2f}%",
        "MemUsage": f"{units.human_bytes(use.memory)} / {units.human_bytes(limit)}",
        "MemPerc": f"{100.0 * use.memory / limit if limit else 0.0:.2f}%",
        "NetIO": f"{units.human_size(use.net_received)} / {units.human_size(use.net_sent)}",
        "BlockIO": f"{units.human_size(use.io_read)} / {units.human_size(use.io_written)}",
        "PIDs": str(use.pids),
    }


def _memory() -> int:
    """This machine's memory, the limit of what has none."""
    import os

    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


COMMANDS = {
    "stats": Command(
        stats,
        "[WORKLOAD...]",
        (
            flag("-a, --all", "Show all, not only what runs"),
            FORMAT,
            flag("--no-stream", "Look once"),
            flag("--no-trunc", "Do not shorten"),
        ),
        complete="running",
    )
}
