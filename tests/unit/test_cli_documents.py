"""Every command line that the documents show is one that the program understands."""

import re
import shlex
from pathlib import Path

import pytest

from mamushka.interfaces.cli import program, verbs
from mamushka.interfaces.cli.options import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = re.compile(r"(?:^|[`$ ]|bin/)mamushka ((?:-|[a-z]+\b)[^`\n]*)", re.MULTILINE)


def lines() -> list[str]:
    found = []
    for page in PAGES:
        if page.name != "cli.md":
            text = page.read_text()
            blocks = re.findall(r"```(?:sh|console|bash)?\n(.*?)```", text, re.DOTALL)
            code = [*blocks, *re.findall(r"^ {4}.*$", text, re.MULTILINE), *re.findall(r"`mamushka [^`]*`", text)]
            found += [match for piece in code for match in SHOWN.findall(piece)]
    return sorted({line for line in found if "…" not in line})


@pytest.mark.parametrize("line", lines())
def test_what_the_documents_show_is_understood(line: str) -> None:
    words = shlex.split(re.split(r" [|>&;]", line)[0], comments=True)
    given = parse(program.GLOBAL, words, interspersed=False)
    verb, rest = program._verb(list(given.operands))
    entry = verbs.find(verb)
    assert entry is not None
    command = verbs.load(verb, entry[0])
    parse(command.options, rest, interspersed=command.interspersed)  # prose leaves operands out


def test_the_documents_show_some() -> None:
    assert len(lines()) > 5
