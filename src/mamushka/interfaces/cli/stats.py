"""``stats``: how much workloads use, once or again and again."""

from __future__ import annotations

import sys
import time

from mamushka.errors import MamushkaError
from mamushka.interfaces.cli.options import Command, flag
from mamushka.interfaces.cli.output import out
from mamushka.interfaces.cli.table import FORMAT, show
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.workload import Workload
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session
    from mamushka.runtime import Stats

HEADERS = {
    "ID": "CONTAINER ID", "Container": "CONTAINER", "Name": "NAME", "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
}  # fmt: skip
_DEFAULT = "ID Name CPUPerc MemUsage MemPerc NetIO BlockIO PIDs"
# A share of CPU time needs two looks; Docker's are a second apart too.
_INTERVAL = 1.0


def stats(arguments: Arguments, session: Session) -> int:
    """Rows once, or redrawn each second until interrupted."""
    before = _look(arguments, session)
    while True:
        time.sleep(_INTERVAL)
        now = _look(arguments, session)
        rows = [_row(workload, use, when, before, arguments) for workload, use, when in now.values()]
        if not arguments.no_stream and sys.stdout.isatty():
            out("\x1b[2J\x1b[H", end="")
        show(rows, HEADERS, arguments.format, _DEFAULT)
        sys.stdout.flush()
        if arguments.no_stream:
            return 0
        before = now


def _look(arguments: Arguments, session: Session) -> dict[str, tuple[Workload, Stats | None, float]]:
    """Each workload with its use now; one that has just ended uses nothing."""
    engine = session.engine
    if arguments.operands:
        workloads = [engine.inspect(name) for name in arguments.operands]
    else:
        workloads = engine.workloads(all=arguments.all)
    found: dict[str, tuple[Workload, Stats | None, float]] = {}
    for workload in workloads:
        use = None
        if workload.status in ("running", "paused"):
            try:
                use = engine.stats(workload.id)
            except MamushkaError:
                pass
        found[workload.id] = (workload, use, time.monotonic())
    return found


def _row(
    workload: Workload,
    use: Stats | None,
    when: float,
    before: dict[str, tuple[Workload, Stats | None, float]],
    arguments: Arguments,
) -> dict[str, str]:
    identifier = workload.id if arguments.no_trunc else workload.id[:12]
    row = {"ID": identifier, "Container": identifier, "Name": workload.name}
    if use is None:
        return {**row, **dict.fromkeys(("CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"), "--")}
    _, last, then = before.get(workload.id, (workload, None, 0.0))
    share = 100.0 * (use.cpu - last.cpu) / (when - then) if last and when > then else 0.0
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
