"""``logs``."""

from __future__ import annotations

import sys

from mamushka.errors import Invalid
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session


def logs(arguments: Arguments, session: Session) -> int:
    """Each line to the stream it was written to."""
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    lines = session.engine.logs(
        arguments.operands[0],
        follow=arguments.follow,
        since=units.moment(arguments.since),
        until=units.moment(arguments.until),
        tail=arguments.tail,
    )
    last = "stdout"
    for line in lines:
        stream = streams[line.stream]
        if line.stream != last:  # what went to the other stream before shall also be seen before
            streams[last].flush()
            last = line.stream
        stream.write(f"{line.stamp} ".encode() + line.data if arguments.timestamps else line.data)
        if arguments.follow:
            stream.flush()
    for stream in streams.values():
        stream.flush()
    return 0


def _tail(text: str) -> int:
    if text == "all":
        return -1
    try:
        return max(-1, units.integer(text))
    except Invalid as error:
        raise Invalid("not a number of lines", hint="a number, or all") from error


COMMANDS = {
    "logs": Command(
        logs,
        "WORKLOAD",
        (
            flag("-f, --follow", "Stay and show what comes"),
            one("--since", "Only what came after: 2026-11-22T20:00:00Z, or 42m ago", "moment"),
            one("--until", "Only what came before", "moment"),
            one("-n, --tail", "Only the last lines", "number", default=-1, convert=_tail),
            flag("-t, --timestamps", "Show when each line came"),
        ),
        minimum=1,
        maximum=1,
        complete="container",
    )
}
