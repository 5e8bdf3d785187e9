"""The reference of the command line, from the same tables as its parser.

python -m mamushka.interfaces.cli.reference > docs/reference/cli.md
"""

from __future__ import annotations

import sys

from mamushka.interfaces.cli import verbs
from mamushka.interfaces.cli.help import described, signature, usage
from mamushka.interfaces.cli.options import HELP
from mamushka.interfaces.cli.program import GLOBAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.interfaces.cli.options import Option

_INTRODUCTION = """\
# Command line

Made from the program's own tables by `python -m mamushka.interfaces.cli.reference`; do not edit it by hand.

Exit codes: 125 the engine or the command line is at fault, 126 the program cannot be executed, 127 it does not
exist, 128 + n a signal ended it, otherwise what the workload itself said. Other verbs than `run` and `exec` end
with 1 when the engine says no.
"""


def markdown() -> str:
    """The whole page."""
    lines = [_INTRODUCTION, "## Options before the verb", "", *_options(GLOBAL)]
    for group, entries in verbs.GROUPS.items():
        title = f"`mamushka {group}`: {verbs.FAMILIES[group]}" if group in verbs.FAMILIES else group
        lines += ["", f"## {title}"]
        for verb, (module, summary) in entries.items():
            lines += _verb(verb, module, summary)
    return "\n".join(lines) + "\n"


def _verb(verb: str, module: str, summary: str) -> Iterator[str]:
    command = verbs.load(verb, module)
    yield from ("", f"### {verb}", "", f"{summary}.", "", f"    {usage(verb, command).removeprefix('Usage: ')}")
    if command.notes:
        yield from ("", command.notes)
    others = sorted(alias for alias, target in verbs.ALIASES.items() if target == verb)
    if others:
        yield from ("", "Also: " + ", ".join(f"`mamushka {alias}`" for alias in others))
    if command.options:
        yield from ("", *_options(command.options))


def _options(options: Iterable[Option]) -> Iterator[str]:
    yield from ("| option | meaning |", "| --- | --- |")
    for option in sorted((*options, HELP), key=lambda option: option.attribute):
        text = described(option).replace("|", "\\|")
        yield f"| `{signature(option).strip()}` | {text} |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
