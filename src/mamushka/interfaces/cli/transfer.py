"""``pull`` and ``push``."""

from __future__ import annotations

import sys

from mamushka.interfaces.cli import progress
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session


def pull(arguments: Arguments, session: Session) -> int:
    """Fetch, and name what came."""
    name = arguments.operands[0]
    steps = session.engine.images.pull(name, platform=arguments.platform, all_tags=arguments.all_tags)
    progress.show(steps, quiet=arguments.quiet, stream=sys.stdout)
    if not arguments.all_tags:
        out(_whole(name))
    return 0


def push(arguments: Arguments, session: Session) -> int:
    """Upload."""
    name = arguments.operands[0]
    steps = session.engine.images.push(name, all_tags=arguments.all_tags)
    progress.show(steps, quiet=arguments.quiet, stream=sys.stdout)
    if arguments.quiet:
        out(_whole(name))
    return 0


def _whole(name: str) -> str:
    from mamushka.spec.reference import parse

    return name if name == "host" else str(parse(name))


_QUIET = flag("-q, --quiet", "Print the name only")
COMMANDS = {
    "pull": Command(
        pull,
        "NAME[:TAG|@DIGEST]",
        (
            flag("-a, --all-tags", "Fetch every tag of the repository"),
            one("--platform", "os/architecture[/variant]"),
            _QUIET,
        ),
        minimum=1,
        maximum=1,
    ),
    "push": Command(
        push,
        "NAME[:TAG]",
        (flag("-a, --all-tags", "Upload every tag of the repository"), _QUIET),
        minimum=1,
        maximum=1,
        complete="image",
    ),
}
