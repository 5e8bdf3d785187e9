"""From the words on the command line to an exit code.

Docker's codes: 125 the engine or the command line is at fault, 126 and 127 the program cannot be run or does
not exist, 128 + n a signal ended it, otherwise what the workload itself said.
"""

from __future__ import annotations

import sys

from mamushka import trace
from mamushka.errors import Invalid, MamushkaError
from mamushka.interfaces.cli import verbs
from mamushka.interfaces.cli.options import flag, nearest, one, parse
from mamushka.interfaces.cli.output import complain, out
from mamushka.interfaces.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.interfaces.cli.options import Arguments, Command

ENGINE_FAILED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

GLOBAL = (
    one("--data-root", "Where images, volumes and workloads are kept", "path", complete="file"),
    one("--run-root", "Where the state of this boot is kept", "path", complete="file"),
    flag("-D, --debug", "Show each step and how long it took"),
    flag("-v, --version", "Print the version"),
)


def main() -> int:
    """The ``mamushka`` program; its exit code."""
    status = command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
    return status


def command(argv: Sequence[str]) -> int:
    """Carry out one command line; its exit code."""
    try:
        given = parse(GLOBAL, argv, interspersed=False)
        return _dispatch(given)
    except MamushkaError as error:
        complain(str(error), error.hint or "mamushka --help lists the verbs and options")
        return ENGINE_FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:  # a mistake of ours: the user gets a sentence, and us the rest with --debug
        if "--debug" in argv or "-D" in argv:
            raise
        complain(
            f"this is a bug: {type(error).__name__}: {error}",
            "please report it with the output of --debug before the verb",
        )
        return ENGINE_FAILED


def _dispatch(given: Arguments) -> int:
    words = list(given.operands)
    if given.version:
        from mamushka.interfaces.cli.system import version_line

        out(version_line())
        return 0
    if words and words[0] == "help":
        words = [*words[1:], "--help"]
        given.help = len(words) == 1
    if not words or given.help:
        from mamushka.interfaces.cli.help import overview

        out(overview())
        return 0
    if words[0] == "__complete":
        from mamushka.interfaces.cli.completion import candidates

        with Session(given.data_root, given.run_root) as session:
            out("\n".join(candidates(words[1:], session)))
        return 0
    verb, rest = _verb(words)
    if not verb:
        from mamushka.interfaces.cli.help import family

        out(family(words[0]))
        return 0
    return _run(verb, rest, given)


def _verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb's full words, and what follows; no verb where a family stands alone."""
    count = 1
    if words[0] in verbs.FAMILIES:
        if len(words) == 1 or words[1] in ("-h", "--help"):
            return "", []
        count = 2
    name = " ".join(words[:count])
    name = verbs.ALIASES.get(name, name)
    if verbs.find(name) is None:
        known = [*verbs.verbs(), *verbs.ALIASES, *verbs.FAMILIES]
        near = nearest(name, known)
        listing = "mamushka --help" if count == 1 else f"mamushka {words[0]} --help"
        raise Invalid(f"{name!r} is not a verb", hint=f"did you mean {near}?" if near else f"{listing} lists them")
    return name, words[count:]


def _run(verb: str, rest: list[str], given: Arguments) -> int:
    entry = verbs.find(verb)
    assert entry is not None
    chosen = verbs.load(verb, entry[0])
    try:
        arguments = _parse(chosen, rest)
    except MamushkaError as error:
        complain(str(error), error.hint or f"mamushka {verb} --help shows what it takes")
        return ENGINE_FAILED
    if arguments.help:
        from mamushka.interfaces.cli.help import page

        out(page(verb, entry[1], chosen))
        return 0
    return _carry_out(chosen, arguments, Session(given.data_root, given.run_root, debug=given.debug))


def _parse(chosen: Command, rest: list[str]) -> Arguments:
    options = chosen.options if _has_debug(chosen) else (*chosen.options, GLOBAL[2])
    arguments = parse(options, rest, interspersed=chosen.interspersed)
    count = len(arguments.operands)
    if arguments.help:
        return arguments
    if count < chosen.minimum:
        raise Invalid(f"too few arguments: it takes {chosen.usage}")
    if 0 <= chosen.maximum < count:
        raise Invalid(f"too many arguments: it takes {chosen.usage or 'none'}")
    return arguments


def _has_debug(chosen: Command) -> bool:
    return any("--debug" in option.spellings for option in chosen.options)


def _carry_out(chosen: Command, arguments: Arguments, session: Session) -> int:
    session.debug = session.debug or arguments.debug
    if not session.debug:
        return _guarded(chosen, arguments, session)
    from mamushka.interfaces.cli import debug

    clock = debug.begin()
    try:
        return _guarded(chosen, arguments, session)
    finally:
        trace.unsubscribe(clock)
        clock.account()


def _guarded(chosen: Command, arguments: Arguments, session: Session) -> int:
    """Run the verb; what goes wrong becomes a sentence and a code."""
    try:
        with session:
            return chosen.run(arguments, session)
    except MamushkaError as error:
        complain(str(error), error.hint)
        return _status(error, chosen.failure)
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:
        if session.debug:
            raise
        complain(str(error), "with --debug before the verb each step is shown")
        return chosen.failure


def _status(error: MamushkaError, failure: int) -> int:
    """What the caller's script sees of an error."""
    from mamushka.runtime import CannotExecute, CommandNotFound

    if isinstance(error, CommandNotFound):
        return NOT_FOUND
    if isinstance(error, CannotExecute):
        return CANNOT_EXECUTE
    return failure
