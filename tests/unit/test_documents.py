"""Documents name what exists: tests, benchmark rows, files, decisions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*HERE.glob("*.md"), *HERE.glob("docs/**/*.md")])


def test_every_promise_names_a_test_that_exists() -> None:
    text = (HERE / "SPECIFICATION.md").read_text()
    named = re.findall(r"`((?:unit|integration)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for path, name in named:
        file = HERE / "tests" / path
        assert file.exists(), f"{path} is named in SPECIFICATION.md and does not exist"
        if name:
            assert re.search(rf"^\s*(async )?def {name}\(", file.read_text(), re.M), f"{path} has no {name}"


def test_every_promise_is_held_or_says_that_it_is_not() -> None:
    rows = [line for line in (HERE / "SPECIFICATION.md").read_text().splitlines() if re.match(r"\| \d+\.\d+ ", line)]
    for row in rows:
        held = row.rstrip("| ").rpartition("|")[2]
        assert "`" in held or "no test yet" in held, row
    numbers = [row.split()[1] for row in rows]
    assert len(numbers) == len(set(numbers))


def test_the_benchmarks_rows_are_the_promised_ones() -> None:
    promised = re.findall(r"\| `([\w-]+)` \|$", (HERE / "SPECIFICATION.md").read_text(), re.M)
    source = (HERE / "bench" / "rows.py").read_text()
    assert promised == re.findall(r'^    "([\w-]+)": [\w.]+,$', source[source.index("ROWS") :], re.M)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(HERE)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_decisions_say_choice_reason_and_price() -> None:
    for path in (HERE / "docs/decisions").glob("*.md"):
        text = path.read_text()
        assert re.match(rf"# {path.name[:4]} \S", text), path
        for part in ("**Choice.**", "**Reason.**", "**Price.**"):
            assert part in text, f"{path.name} has no {part}"
