"""Rows as a table, as JSON, or through a template: what ``--format`` chooses."""

from __future__ import annotations

from mamushka.interfaces.cli.options import many, one
from mamushka.interfaces.cli.output import out, printable
from mamushka.interfaces.docker.template import Template
from mamushka.interfaces.docker.template_functions import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

# Docker's tabwriter: no column is narrower, and this much space stands between two.
_COLUMN_MIN = 10
_GAP = 3

FORMAT = one("--format", "table, json, a Go template, or table and a template", "format", complete="table|json")
FILTER = many("-f, --filter", "Only what fits: key=value", "filter")


def filters(given: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """key=value pairs, the values of one key together."""
    from mamushka.errors import Invalid

    result: dict[str, tuple[str, ...]] = {}
    for text in given:
        key, equals, word = text.partition("=")
        if not equals or not key:
            raise Invalid(f"the filter {text!r} is not key=value", hint="for example --filter label=tier=web")
        result[key] = (*result.get(key, ()), word)
    return result


def show(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], format: str, names: str = "") -> None:
    """Print rows. ``columns`` maps fields to headers; ``names`` are the default table's fields, all without it."""
    form = format.replace("\\t", "\t").replace("\\n", "\n")
    if form == "json":
        for row in rows:
            out(to_json(row))
    elif form in ("", "table"):
        chosen = names.split() or list(columns)
        cells = [[printable(str(row[name])) for name in chosen] for row in rows]
        print_table([[columns[name] for name in chosen], *cells])
    elif form.startswith("table "):
        template = Template(form[6:])
        headers = {**dict.fromkeys(("Label", "Config"), lambda key: key), **columns}
        lines = [template.render(headers), *(template.render(row) for row in rows)]
        print_table([line.split("\t") for line in lines])
    else:
        template = Template(form)
        for row in rows:
            out(template.render(row))


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one ends where its text ends."""
    widths: list[int] = []
    for line in lines:
        widths += [0] * (len(line) - len(widths))
        for index, cell in enumerate(line):
            widths[index] = max(widths[index], len(cell) + _GAP, _COLUMN_MIN)
    for line in lines:
        padded = [cell.ljust(widths[index]) for index, cell in enumerate(line[:-1])]
        out("".join(padded) + line[-1])
