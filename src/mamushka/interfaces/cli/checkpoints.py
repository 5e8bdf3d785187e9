"""Checkpoints, in Docker's words (checkpoint, start --checkpoint) and in podman's (container checkpoint, restore).

A snapshot is a checkpoint that leaves its workload running, and that others can go on from: ``fork --checkpoint``.
"""

from __future__ import annotations

from mamushka.engine import checkpoints
from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.lifecycle import each
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.output import out
from mamushka.interfaces.cli.table import FORMAT, show
from mamushka.interfaces.docker import units
from mamushka.runtime import CheckpointOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

# podman gives its checkpoint no name, and a workload has one.
UNNAMED = "checkpoint"


def create(arguments: Arguments, session: Session) -> int:
    """``checkpoint create``: print its name."""
    workload, name = arguments.operands
    made = session.engine.checkpoint(workload, name, _options(arguments), directory=arguments.checkpoint_dir)
    out(made.name)
    return 0


def listing(arguments: Arguments, session: Session) -> int:
    """``checkpoint ls``."""
    found = session.engine.checkpoints(arguments.operands[0], directory=arguments.checkpoint_dir)
    show([{"Name": made.name} for made in found], {"Name": "CHECKPOINT NAME"}, arguments.format, "Name")
    return 0


def remove(arguments: Arguments, session: Session) -> int:
    """``checkpoint rm``."""
    workload, name = arguments.operands
    checkpoints.remove(session.engine, workload, name, directory=arguments.checkpoint_dir)
    return 0


def start(arguments: Arguments, session: Session) -> int:
    """``start --checkpoint``."""

    def act(name: str) -> None:
        made = checkpoints.find(session.engine, name, arguments.checkpoint, directory=arguments.checkpoint_dir)
        session.engine.start(name, checkpoint=made)

    return each(arguments.operands, act)


def snapshot(arguments: Arguments, session: Session) -> int:
    """``snapshot``: print its name."""
    workload, *name = arguments.operands
    made = session.engine.snapshot(workload, name[0] if name else "", directory=arguments.checkpoint_dir)
    out(made.name)
    return 0


def fork(arguments: Arguments, session: Session) -> int:
    """``fork``: print the new workloads' ids."""
    engine, name = session.engine, arguments.operands[0]
    if arguments.checkpoint:
        made = checkpoints.find(engine, name, arguments.checkpoint, directory=arguments.checkpoint_dir)
        ids = engine.spawn(engine.inspect(name), made, arguments.count, names=arguments.name)
    else:
        ids = engine.fork(name, arguments.count, names=arguments.name)
    for id in ids:
        out(id)
    return 0


def write_down(arguments: Arguments, session: Session) -> int:
    """``container checkpoint``: the latest is the only one; with --export it goes to a file."""
    if arguments.export and len(arguments.operands) > 1:
        raise Invalid("one file takes one workload", hint="leave out --export, or name one workload")

    def act(name: str) -> None:
        if arguments.export:
            from mamushka.engine.portable import export

            export(session.engine, name, arguments.export, _options(arguments), root=not arguments.ignore_rootfs)
            return
        try:
            checkpoints.remove(session.engine, name, UNNAMED)
        except NotFound:
            pass
        session.engine.checkpoint(name, UNNAMED, _options(arguments))

    return each(arguments.operands, act)


def go_on(arguments: Arguments, session: Session) -> int:
    """``container restore``; what it went on from is removed, unless it is to be kept."""
    if arguments.import_:
        from mamushka.engine.portable import take_in

        if arguments.operands:
            raise Invalid("a file says itself which workload it is", hint="leave out the workload, or --import")
        id = take_in(session.engine, arguments.import_, name=arguments.name, root=not arguments.ignore_rootfs)
        return _go_on(id, arguments, session)
    if not arguments.operands or arguments.name:
        raise Invalid("name a workload, or a file with --import")
    return max(_go_on(name, arguments, session) for name in arguments.operands)


def _go_on(name: str, arguments: Arguments, session: Session) -> int:
    def act(name: str) -> None:
        made = checkpoints.find(session.engine, name, UNNAMED)
        session.engine.start(name, checkpoint=made)
        if not arguments.keep:
            checkpoints.remove(session.engine, name, UNNAMED)

    return each([name], act)


def _options(arguments: Arguments) -> CheckpointOptions:
    return CheckpointOptions(
        leave_running=arguments.leave_running,
        tcp_established=arguments.tcp_established,
        file_locks=arguments.file_locks,
        ext_unix_sk=arguments.ext_unix_sk,
    )


_DIRECTORY = one("--checkpoint-dir", "Keep it there, and not with the workload", complete="file")
_TIES = (
    flag("--ext-unix-sk", "Leave sockets of the outside to their fate"),
    flag("--file-locks", "Take file locks along"),
    flag("--tcp-established", "Take connections along"),
)
_NO_ROOT = flag("--ignore-rootfs", "Without what it changed in its root")
COMMANDS = {
    "checkpoint create": Command(
        create,
        "WORKLOAD CHECKPOINT",
        (_DIRECTORY, flag("--leave-running", "Let it run on"), *_TIES),
        minimum=2,
        maximum=2,
        complete="running",
    ),
    "checkpoint ls": Command(listing, "WORKLOAD", (_DIRECTORY, FORMAT), minimum=1, maximum=1, complete="container"),
    "checkpoint rm": Command(remove, "WORKLOAD CHECKPOINT", (_DIRECTORY,), minimum=2, maximum=2, complete="container"),
    "snapshot": Command(snapshot, "WORKLOAD [SNAPSHOT]", (_DIRECTORY,), minimum=1, maximum=2, complete="running"),
    "fork": Command(
        fork,
        "WORKLOAD",
        (
            one("-n, --count", "How many", "int", default=1, convert=units.integer),
            many("--name", "What they are called; once for each, or not at all"),
            one("--checkpoint", "Go on from this snapshot of it, and not from now"),
            one("--checkpoint-dir", "Where that is, if not with the workload", complete="file"),
        ),
        minimum=1,
        maximum=1,
        complete="container",
    ),
    "container checkpoint": Command(
        write_down,
        "WORKLOAD [WORKLOAD...]",
        (
            one("-e, --export", "Write it to a tar file that another machine can go on from", complete="file"),
            flag("-R, --leave-running", "Let it run on"),
            _NO_ROOT,
            *_TIES,
        ),
        minimum=1,
        complete="running",
    ),
    "container restore": Command(
        go_on,
        "[WORKLOAD...]",
        (
            one("-i, --import", "Make the workload from such a file", complete="file", dest="import_"),
            flag("-k, --keep", "Keep the checkpoint"),
            one("-n, --name", "With --import: another name"),
            _NO_ROOT,
        ),
        complete="container",
    ),
}
