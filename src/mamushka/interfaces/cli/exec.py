"""Verbs that connect a person to something that runs, or is about to: exec, attach, start."""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.interfaces.cli import foreground
from mamushka.interfaces.cli.lifecycle import each
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.workload_options import DETACH_KEYS
from mamushka.interfaces.docker import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.attach import Attached
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session


def execute(arguments: Arguments, session: Session) -> int:
    """A further command in a running workload; its exit code is ours."""
    name, *command = arguments.operands
    stdin = arguments.interactive and not arguments.detach
    foreground.check_terminal(terminal=arguments.tty, stdin=stdin)
    foreground.DetachKeys(arguments.detach_keys)
    attached = session.engine.exec(
        name,
        command,
        environment=environment.environment(arguments.env, arguments.env_file),
        working_directory=arguments.workdir,
        user=arguments.user,
        privileged=arguments.privileged,
        terminal=arguments.tty,
        stdin=stdin,
        size=foreground.terminal_size() if arguments.tty else None,
        detach=arguments.detach,
    )
    if arguments.detach:
        attached.close()
        return 0
    # exec has no --sig-proxy: ctrl-c ends the command, and nothing else may hang behind.
    return _stay(attached, arguments, stdin=stdin, terminal=arguments.tty, proxy=True)


def attach(arguments: Arguments, session: Session) -> int:
    """Connect to the first process's streams."""
    name = arguments.operands[0]
    workload = session.engine.inspect(name)
    if workload.status == "paused":
        raise Invalid(f"{name} is paused", hint=f"mamushka unpause {name}")
    terminal = workload.settings.terminal
    stdin = workload.settings.stdin and not arguments.no_stdin
    foreground.check_terminal(terminal=terminal, stdin=stdin)
    attached = session.engine.attach(workload.id, stdin=stdin)
    size = foreground.terminal_size()
    if terminal and size:
        attached.resize(*size)
    return _stay(attached, arguments, stdin=stdin, terminal=terminal, proxy=arguments.sig_proxy)


def start(arguments: Arguments, session: Session) -> int:
    """Start what is there; with -a or -i stay with it."""
    if arguments.checkpoint:
        from mamushka.interfaces.cli.checkpoints import start as go_on

        if arguments.attach or arguments.interactive:
            raise Invalid("--attach and --interactive do not go with --checkpoint", hint="attach to it afterwards")
        return go_on(arguments, session)
    if not (arguments.attach or arguments.interactive):
        return each(arguments.operands, lambda name: session.engine.start(name))
    if len(arguments.operands) > 1:
        raise Invalid("one can stay with only one workload", hint="leave out --attach and --interactive")
    workload = session.engine.inspect(arguments.operands[0])
    if workload.status == "running":
        return attach_running(workload.id, arguments, session)
    terminal = workload.settings.terminal
    stdin = arguments.interactive and workload.settings.stdin
    foreground.check_terminal(terminal=terminal, stdin=stdin)
    size = foreground.terminal_size() if terminal else None
    attached = session.engine.start(workload.id, attach=True, stdin=stdin, size=size)
    assert attached is not None
    return _stay(attached, arguments, stdin=stdin, terminal=terminal, proxy=arguments.sig_proxy)


def attach_running(identifier: str, arguments: Arguments, session: Session) -> int:
    """``start -a`` of what runs already is ``attach``."""
    settings = session.engine.inspect(identifier).settings
    stdin = arguments.interactive and settings.stdin
    attached = session.engine.attach(identifier, stdin=stdin)
    return _stay(attached, arguments, stdin=stdin, terminal=settings.terminal, proxy=arguments.sig_proxy)


def _stay(attached: Attached, arguments: Arguments, *, stdin: bool, terminal: bool, proxy: bool) -> int:
    keys = arguments.detach_keys
    return foreground.attend(attached, stdin=stdin, terminal=terminal, proxy=proxy, detach_keys=keys)


_SIG_PROXY = flag("--sig-proxy", "Hand signals on to the process", default=True)
COMMANDS = {
    "exec": Command(
        execute,
        "WORKLOAD COMMAND [ARG...]",
        (
            flag("-d, --detach", "Leave it running in the background"),
            DETACH_KEYS,
            many("-e, --env", "Set a variable: NAME=value", convert=environment.variable),
            many("--env-file", "Read variables from a file", complete="file"),
            flag("-i, --interactive", "Keep standard input open"),
            flag("--privileged", "Give it all capabilities"),
            flag("-t, --tty", "Allocate a terminal"),
            one("-u, --user", "User and group: NAME|UID[:GROUP|GID]"),
            one("-w, --workdir", "Its working directory"),
        ),
        minimum=2,
        interspersed=False,
        complete="running",
    ),
    "attach": Command(
        attach,
        "WORKLOAD",
        (DETACH_KEYS, flag("--no-stdin", "Do not connect standard input"), _SIG_PROXY),
        minimum=1,
        maximum=1,
        complete="running",
    ),
    "start": Command(
        start,
        "WORKLOAD [WORKLOAD...]",
        (
            flag("-a, --attach", "Stay, show the output and hand on signals"),
            one("--checkpoint", "Go on from this checkpoint"),
            one("--checkpoint-dir", "Where that is, if not with the workload", complete="file"),
            flag("-i, --interactive", "Stay, and connect standard input"),
            DETACH_KEYS,
            _SIG_PROXY,
        ),
        minimum=1,
        complete="container",
    ),
}
