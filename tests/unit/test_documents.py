"""Documents name what exists: tests, benchmark rows, files, decisions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.spec import runtime

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


def _properties(kind: type, above: str) -> Iterator[str]:
    """The JSON paths of all fields of a value class and of those within it."""
    for field, annotation in kind.__annotations__.items():
        name = runtime._codec._names.get(field) or re.sub(r"_(\w)", lambda match: match[1].upper(), field)
        each = "[]" if annotation.startswith("tuple") else ".*" if annotation.startswith("Mapping") else ""
        words = re.findall(r"\w+", annotation)
        below = next((item for word in words if hasattr(item := getattr(runtime, word, None), "__match_args__")), None)
        if isinstance(below, type):
            yield from _properties(below, f"{above}{name}{each}.")
        else:
            yield f"{above}{name}"


def test_every_property_of_the_runtime_specification_has_its_test() -> None:
    text = (HERE / "docs/reference/runtime-spec.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+) \|$", text, re.M)
    assert [name for name, _, _ in rows] == list(_properties(runtime.Config, ""))
    for name, _, held in rows:
        tests = re.findall(r"`((?:unit|integration)/[\w/]+\.py)::(\w+)`", held)
        assert tests, name
        for path, test in tests:
            assert re.search(rf"^def {test}\(", (HERE / "tests" / path).read_text(), re.M), f"{path} has no {test}"
