"""The grammar of the command line: one table of options per verb feeds the parser, completion and reference.

It is pflag's grammar, which Docker's users have in their fingers and argparse cannot speak: a flag takes
``=false``, a value may start with a dash (``--memory-swap -1``), and for ``run`` and ``exec`` everything after
the first operand belongs to the workload. Not importing argparse also saves 7 ms in front of every container.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from mamushka.interfaces.cli.session import Session

FLAG, ONE, MANY = 0, 1, 2


@value
class Option:
    """One option; ``names`` is its spelling as a person reads it: "-m, --memory"."""

    names: str
    help: str
    kind: int = ONE
    metavar: str = ""
    default: Any = ""
    convert: Callable[[str], Any] | None = None  # raises Invalid
    complete: str = ""  # container | running | image | volume | network | file | a|list|of|words
    dest: str = ""  # the attribute; empty: the long name with underscores

    @property
    def spellings(self) -> list[str]:
        """["-m", "--memory"]."""
        return self.names.split(", ")

    @property
    def attribute(self) -> str:
        """Under which name the answer stands in the arguments."""
        return self.dest or self.spellings[-1].lstrip("-").replace("-", "_")


def flag(names: str, help: str, *, default: bool = False, dest: str = "") -> Option:
    """An option that is there or not; ``--name=false`` takes it back."""
    return Option(names, help, FLAG, "", default, dest=dest)


def one(
    names: str,
    help: str,
    metavar: str = "string",
    *,
    default: object = "",
    convert: Callable[[str], Any] | None = None,
    complete: str = "",
    dest: str = "",
) -> Option:
    """An option with a value; given twice, the last one counts."""
    return Option(names, help, ONE, metavar, default, convert, complete, dest)


def many(
    names: str,
    help: str,
    metavar: str = "list",
    *,
    convert: Callable[[str], Any] | None = None,
    complete: str = "",
    dest: str = "",
) -> Option:
    """An option that may be given again and again."""
    return Option(names, help, MANY, metavar, (), convert, complete, dest)


class Arguments:
    """What was given, by attribute: a bool, a value or a tuple per option, and the tuple ``operands``."""

    operands: tuple[str, ...] = ()
    help: bool = False
    given: frozenset[str] = frozenset()  # attributes that the user set, whatever their value

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@value
class Command:
    """A verb: what it takes and what carries it out. ``run`` answers the exit code."""

    run: Callable[[Arguments, Session], int]
    usage: str = ""  # the operands: "IMAGE [COMMAND] [ARG...]"
    options: tuple[Option, ...] = ()
    minimum: int = 0
    maximum: int = -1  # of operands; -1 is no bound
    interspersed: bool = True  # options may follow operands
    failure: int = 1  # the exit code when the engine says no
    complete: str = ""  # what the operands are, as Option.complete
    notes: str = ""  # further paragraphs for --help


HELP = flag("-h, --help", "Print this text")


def _table(options: Iterable[Option]) -> dict[str, Option]:
    table = {spelling: option for option in options for spelling in option.spellings}
    table.setdefault("--help", HELP)
    table.setdefault("-h", HELP)
    return table


def parse(options: Sequence[Option], argv: Sequence[str], *, interspersed: bool = True) -> Arguments:
    """Read a command line. Invalid for an unknown option, a missing or a wrong value."""
    table = _table(options)
    found: dict[str, Any] = {option.attribute: option.default for option in options}
    found["help"] = False
    given: set[str] = set()
    operands: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            operands.extend(words)
        elif len(word) > 1 and word[0] == "-":
            for option, text in _read(table, word, words):
                _take(found, option, text)
                given.add(option.attribute)
        else:
            operands.append(word)
            if not interspersed:
                operands.extend(words)
    arguments = Arguments()
    arguments.__dict__.update(found, operands=tuple(operands), given=frozenset(given))
    return arguments


def _read(table: dict[str, Option], word: str, words: Iterable[str]) -> Iterable[tuple[Option, str | None]]:
    """The options in one word; one that needs a value takes the rest of it, or the next word."""
    if word.startswith("--"):
        name, equals, text = word.partition("=")
        option = table.get(name)
        if option is None:
            raise unknown(name, table)
        if option.kind == FLAG or equals:
            return [(option, text if equals else None)]
        return [(option, _next(words, name))]
    return _read_short(table, word, words)


def _read_short(table: dict[str, Option], word: str, words: Iterable[str]) -> list[tuple[Option, str | None]]:
    result: list[tuple[Option, str | None]] = []
    for index in range(1, len(word)):
        option = table.get("-" + word[index])
        if option is None:
            raise unknown("-" + word[index], table, word)
        rest = word[index + 1 :]
        if option.kind != FLAG:
            return [*result, (option, rest.removeprefix("=") if rest else _next(words, "-" + word[index]))]
        if rest.startswith("="):
            return [*result, (option, rest[1:])]
        result.append((option, None))
    return result


def _next(words: Iterable[str], name: str) -> str:
    for word in words:
        return word
    raise Invalid(f"the option {name} needs a value")


def _take(found: dict[str, Any], option: Option, text: str | None) -> None:
    name = option.attribute
    if option.kind == FLAG:
        found[name] = True if text is None else _boolean(option, text)
        return
    assert text is not None
    try:
        item = option.convert(text) if option.convert else text
    except Invalid as error:
        raise Invalid(f"invalid value {text!r} for {option.names}: {error}", hint=error.hint) from error
    found[name] = (*found[name], item) if option.kind == MANY else item


def _boolean(option: Option, text: str) -> bool:
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise Invalid(f"invalid value {text!r} for {option.names}: not true or false")


def unknown(name: str, table: Iterable[str], word: str = "") -> Invalid:
    """The error for an option that does not exist, with the nearest one that does."""
    where = f" in {word!r}" if word and len(word) > 2 else ""
    near = nearest(name, [item for item in table if item.startswith("--")])
    return Invalid(f"unknown option {name}{where}", hint=f"did you mean {near}?" if near else "")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate that a typing mistake could have turned into ``word``, or nothing."""
    best = min(((_distance(word, item), item) for item in candidates), default=(99, ""))
    return best[1] if best[0] <= max(1, len(word.lstrip("-")) // 3) else ""


def _distance(left: str, right: str) -> int:
    """Edits between two words, a swap of neighbours counting once (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
    return row[-1]
