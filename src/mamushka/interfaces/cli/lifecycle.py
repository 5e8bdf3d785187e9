"""Verbs that change workloads by name: stop, kill, rm, pause, update and their like."""

from __future__ import annotations

from mamushka.errors import Invalid, MamushkaError, NotFound
from mamushka.interfaces.cli.confirm import PRUNE, confirmed, reclaimed
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import complain, out, talk
from mamushka.interfaces.cli.settings import limits
from mamushka.interfaces.cli.table import filters
from mamushka.interfaces.cli.workload_options import LIMITS
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

_SIGNAL = one("-s, --signal", "The signal to send", "signal", complete="TERM|KILL|INT|HUP|QUIT|USR1|USR2")
_TIMEOUT = one(
    "-t, --timeout, --time", "Seconds until SIGKILL; -1: never", "int", default=None, convert=units.integer,
    dest="timeout",
)  # fmt: skip


def each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Act on every name and print it; one that fails does not keep the others from their turn."""
    failed = 0
    for name in names:
        try:
            act(name)
        except MamushkaError as error:
            complain(str(error), error.hint)
            failed = 1
        else:
            out(name)
    return failed


def stop(arguments: Arguments, session: Session) -> int:
    """Stop signal, patience, SIGKILL."""
    return each(
        arguments.operands,
        lambda name: session.engine.stop(name, timeout=arguments.timeout, signal=arguments.signal),
    )


def restart(arguments: Arguments, session: Session) -> int:
    """Stop and start."""

    def act(name: str) -> None:
        if arguments.signal:
            session.engine.stop(name, timeout=arguments.timeout, signal=arguments.signal)
            session.engine.start(name)
        else:
            session.engine.restart(name, timeout=arguments.timeout)

    return each(arguments.operands, act)


def kill(arguments: Arguments, session: Session) -> int:
    """Send a signal."""
    return each(arguments.operands, lambda name: session.engine.kill(name, arguments.signal or "KILL"))


def pause(arguments: Arguments, session: Session) -> int:
    """Freeze."""
    return each(arguments.operands, lambda name: session.engine.pause(name))


def unpause(arguments: Arguments, session: Session) -> int:
    """Let go on."""
    return each(arguments.operands, lambda name: session.engine.unpause(name))


def remove(arguments: Arguments, session: Session) -> int:
    """Remove; forced, what is not there is no failure."""

    def act(name: str) -> None:
        try:
            session.engine.remove(name, force=arguments.force, volumes=arguments.volumes)
        except NotFound as error:
            if not arguments.force:
                raise
            talk(str(error))

    return each(arguments.operands, act)


def rename(arguments: Arguments, session: Session) -> int:
    """Give another name."""
    old, new = arguments.operands
    session.engine.rename(old, new)
    return 0


def update(arguments: Arguments, session: Session) -> int:
    """Change limits and restart policy."""
    changed = limits(arguments) if arguments.given - {"restart", "debug"} else None
    if changed is None and arguments.restart is None:
        raise Invalid("nothing to change", hint="give a limit, for example --memory 512m")
    return each(
        arguments.operands,
        lambda name: session.engine.update(name, limits=changed, restart=arguments.restart),
    )


def wait(arguments: Arguments, session: Session) -> int:
    """Print each exit code as it comes."""
    failed = 0
    for name in arguments.operands:
        try:
            out(str(session.engine.wait(name).status))
        except MamushkaError as error:
            complain(str(error), error.hint)
            failed = 1
    return failed


def prune(arguments: Arguments, session: Session) -> int:
    """Remove ended workloads, after asking."""
    if not confirmed(arguments, "This will remove all workloads that have ended."):
        return 1
    removed, freed = session.engine.prune(filters=filters(arguments.filter))
    reclaimed("Deleted Containers:", removed, freed)
    return 0


_MANY = "WORKLOAD [WORKLOAD...]"
COMMANDS = {
    "stop": Command(stop, _MANY, (_SIGNAL, _TIMEOUT), minimum=1, complete="running"),
    "restart": Command(restart, _MANY, (_SIGNAL, _TIMEOUT), minimum=1, complete="container"),
    "kill": Command(kill, _MANY, (_SIGNAL,), minimum=1, complete="running"),
    "pause": Command(pause, _MANY, minimum=1, complete="running"),
    "unpause": Command(unpause, _MANY, minimum=1, complete="running"),
    "rm": Command(
        remove,
        _MANY,
        (flag("-f, --force", "Kill it first if it runs"), flag("-v, --volumes", "Remove its anonymous volumes too")),
        minimum=1,
        complete="container",
    ),
    "rename": Command(rename, "WORKLOAD NAME", minimum=2, maximum=2, complete="container"),
    "update": Command(update, _MANY, LIMITS, minimum=1, complete="container"),
    "wait": Command(wait, _MANY, minimum=1, complete="running"),
    "container prune": Command(prune, "", PRUNE, maximum=0),
}
