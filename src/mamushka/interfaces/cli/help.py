"""The texts of --help, from the table of verbs and each verb's table of options."""

from __future__ import annotations

import textwrap

from mamushka.interfaces.cli import verbs
from mamushka.interfaces.cli.options import FLAG, HELP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.interfaces.cli.options import Command, Option

_WIDTH = 100
_VERB = 13  # every verb, and a gap


def overview() -> str:
    """``mamushka --help``: every verb, by what one wants to do."""
    from mamushka.interfaces.cli.program import GLOBAL

    lines = ["Usage: mamushka [OPTIONS] VERB …", "", "Run any OCI image behind the wall you choose.", ""]
    for group, entries in verbs.GROUPS.items():
        if group not in verbs.FAMILIES:
            rows = [(verb, summary) for verb, (_, summary) in entries.items()]
            lines += [f"{group}:", *_columns(rows, _VERB), ""]
    lines += ["Families of verbs:", *_columns(verbs.FAMILIES.items(), _VERB), ""]
    lines += ["Options:", *options(GLOBAL), ""]
    lines.append("mamushka VERB --help tells more of a verb. First steps: mamushka run --rm host uname -a")
    return "\n".join(lines)


def family(name: str) -> str:
    """``mamushka volume --help``: the verbs of a family."""
    entries = {verb: summary for verb, (_, summary) in verbs.GROUPS[name].items()}
    for alias, verb in verbs.ALIASES.items():
        entry = verbs.find(verb)
        if alias.startswith(name + " ") and entry:
            entries.setdefault(alias, f"{entry[1]} (mamushka {verb})")
    lines = [f"Usage: mamushka {name} VERB …", "", verbs.FAMILIES[name], "", "Verbs:"]
    return "\n".join([*lines, *_columns(sorted(entries.items()))])


def page(verb: str, summary: str, command: Command) -> str:
    """``mamushka VERB --help``."""
    others = [alias for alias, target in verbs.ALIASES.items() if target == verb]
    lines = [usage(verb, command), "", summary]
    if command.notes:
        lines += ["", command.notes]
    if others:
        lines += ["", "Also: " + ", ".join(f"mamushka {alias}" for alias in sorted(others))]
    return "\n".join([*lines, "", "Options:", *options(command.options)])


def usage(verb: str, command: Command) -> str:
    """The line that shows how a verb is called."""
    return f"Usage: mamushka {verb}{' [OPTIONS]' if command.options else ''} {command.usage}".rstrip()


def options(table: Iterable[Option]) -> list[str]:
    """One entry per option, by name, in two columns."""
    ordered = sorted((*table, HELP), key=lambda option: option.attribute)
    return _columns((signature(option), described(option)) for option in ordered)


def signature(option: Option) -> str:
    """ "-m, --memory bytes", with the long names in one column."""
    indent = "" if option.names.startswith("-") and not option.names.startswith("--") else "    "
    return f"{indent}{option.names}{'' if option.kind == FLAG else ' ' + option.metavar}"


def described(option: Option) -> str:
    """What it does, with a default worth telling."""
    default = option.default
    if default in ("", (), None, False, 0, -1):
        return option.help
    return f"{option.help} (default {str(default).lower() if default is True else default})"


def _columns(rows: Iterable[tuple[str, str]], width: int = 0) -> list[str]:
    """Two columns; without a width the left one is as wide as its entries, within reason."""
    rows = list(rows)
    width = width or min(32, max(len(left) for left, _ in rows)) + 3
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, _WIDTH - width - 2) or [""]
        if len(left) > width - 2:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:{width}}{wrapped[0]}".rstrip())
        lines += [" " * (width + 2) + line for line in wrapped[1:]]
    return lines
