"""Verbs that show workloads: ps, port, top, diff."""

from __future__ import annotations

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import out, printable
from mamushka.interfaces.cli.table import FILTER, FORMAT, filters, print_table, show
from mamushka.interfaces.docker import container, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from mamushka.engine.machines import Process
    from mamushka.engine.workload import Workload
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

HEADERS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
    "Status": "STATUS", "State": "STATE", "Ports": "PORTS", "Names": "NAMES", "Size": "SIZE", "Labels": "LABELS",
    "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Runtime": "RUNTIME",
}  # fmt: skip
_DEFAULT = "ID Image Command RunningFor Status Ports Names"


def processes(arguments: Arguments, session: Session) -> int:
    """``ps``."""
    found = _found(arguments, session)
    if arguments.quiet:
        for workload in found:
            out(workload.id if arguments.no_trunc else workload.id[:12])
        return 0
    sized = arguments.size or ".Size" in arguments.format
    sizes = _sizes(session) if sized else {}
    rows = [
        container.row(workload, truncate=not arguments.no_trunc, size=units.human_size(sizes.get(workload.id, 0)))
        for workload in found
    ]
    show(rows, HEADERS, arguments.format, _DEFAULT + (" Size" if arguments.size else ""))
    return 0


def _found(arguments: Arguments, session: Session) -> list[Workload]:
    last = 1 if arguments.latest else arguments.last
    wanted = filters(arguments.filter)
    everything = arguments.all or last > 0 or "status" in wanted or "exited" in wanted
    found = session.engine.workloads(all=everything, filters=wanted)
    return found[:last] if last > 0 else found


def _sizes(session: Session) -> dict[str, int]:
    """Bytes of each writable top."""
    usage: Mapping[str, Any] = session.engine.disk_usage()
    return dict(usage["workload_sizes"])


def ports(arguments: Arguments, session: Session) -> int:
    """``port``."""
    name, *wanted = arguments.operands
    published = session.engine.inspect(name).published
    if not wanted:
        for line in container.port_lines(published):
            out(line)
        return 0
    number, _, protocol = wanted[0].partition("/")
    fitting = [port for port in published if (str(port.port), port.protocol) == (number, protocol or "tcp")]
    if not fitting:
        raise NotFound(f"the port {number}/{protocol or 'tcp'} of {name} is not published")
    for port in fitting:
        out(container.host_port(port))
    return 0


def top(arguments: Arguments, session: Session) -> int:
    """The workload's processes, as this machine's ps shows them."""
    name, *options = arguments.operands
    inside = session.engine.processes_inside(name)
    if inside is not None:
        _top_inside(inside, options)
        return 0
    pids = session.engine.processes(name)
    if not pids:
        raise Invalid(f"{name} has no processes", hint="it may have ended: mamushka ps -a")
    lines = _ps(options or ["-ef"])
    heading = lines[0].split()
    if "PID" not in heading:
        raise Invalid("the output of ps has no column PID", hint="add pid to the columns that -o names")
    column, wanted = heading.index("PID"), {str(pid) for pid in pids}
    rows = [line.split(None, len(heading) - 1) for line in lines[1:]]
    print_table(
        [
            heading,
            *([printable(cell) for cell in row] for row in rows if row[column : column + 1] and row[column] in wanted),
        ]
    )
    return 0


def _top_inside(found: tuple[Process, ...], options: Sequence[str]) -> None:
    """A machine's processes are not this host's, so its ps cannot show them."""
    if options:
        raise Invalid("the processes in a machine are shown in one way only", hint="leave out the options of ps")
    rows = [
        [str(item.uid), str(item.pid), str(item.parent), _clock(item.cpu), printable(item.command)] for item in found
    ]
    print_table([["UID", "PID", "PPID", "TIME", "CMD"], *rows])


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _ps(options: Sequence[str]) -> list[str]:
    import subprocess

    try:
        done = subprocess.run(["ps", *options], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise NotFound("this machine has no ps", hint="install the package procps") from error
    if done.returncode:
        raise Invalid(f"ps failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace").splitlines()


def diff(arguments: Arguments, session: Session) -> int:
    """What was added, changed and deleted."""
    for kind, path in session.engine.changes(arguments.operands[0]):
        out(f"{kind} {printable(path)}")
    return 0


COMMANDS = {
    "ps": Command(
        processes,
        "",
        (
            flag("-a, --all", "Show all, not only what runs"),
            FILTER,
            FORMAT,
            one("-n, --last", "Show the last n created, running or not", "int", default=-1, convert=units.integer),
            flag("-l, --latest", "Show the last created, running or not"),
            flag("--no-trunc", "Do not shorten"),
            flag("-q, --quiet", "Print ids only"),
            flag("-s, --size", "Show sizes"),
        ),
        maximum=0,
    ),
    "port": Command(ports, "WORKLOAD [PORT[/PROTOCOL]]", minimum=1, maximum=2, complete="running"),
    "top": Command(top, "WORKLOAD [PS OPTIONS]", minimum=1, interspersed=False, complete="running"),
    "diff": Command(diff, "WORKLOAD", minimum=1, maximum=1, complete="container"),
}
