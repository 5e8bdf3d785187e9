"""The OCI runtime's command line, as other engines drive it: ``mamushka-oci``.

It takes the union of runc's and crun's flags. Each command is a function in a module that only it imports, because
the interpreter's start is most of what a caller waits for.
"""

from __future__ import annotations

import sys

from mamushka.errors import MamushkaError
from mamushka.interfaces.oci.arguments import GLOBAL, USAGE, Arguments, UsageError, parse
from mamushka.interfaces.oci.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "mamushka-oci"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    log = Log()
    try:
        options, rest = parse(GLOBAL, given, stop=True)
        if "version" in options:
            return _version()
        if "help" in options or not rest or rest[0] in ("help", "h"):
            sys.stdout.write(USAGE)
            return 0
        log.open(options)
        return _command(rest[0], rest[1:], options, log)
    except UsageError as error:
        return log.fatal(error, status=1)
    except MamushkaError as error:
        return log.fatal(error, status=_status(error))
    except OSError as error:
        return log.fatal(error, status=1)


def _command(name: str, rest: list[str], options: Arguments, log: Log) -> int:
    from mamushka.interfaces.oci import commands

    log.command = name
    run = commands.find(name)
    arguments, positional = parse(run.flags, rest, stop=run.stop)
    if "help" in arguments:
        sys.stdout.write(run.usage(name))
        return 0
    run.check(name, positional)
    return run.execute(options, arguments, positional)


def _status(error: MamushkaError) -> int:
    """As a shell would answer for a program that cannot be executed; otherwise 1."""
    from mamushka.runtime import CannotExecute, CommandNotFound

    if isinstance(error, CommandNotFound):
        return 127
    return 126 if isinstance(error, CannotExecute) else 1


def _version() -> int:
    """Three lines: dockerd reads the first two, people the third."""
    from mamushka.spec.runtime import VERSION

    # Not by name: the package's own door also leads to the Python API, a stranger to this room.
    own = sys.modules["mamushka"].__dict__["__version__"]
    sys.stdout.write(f"{PROGRAM} version {own}\ncommit: v{own}\nspec: {VERSION}\n")
    return 0
