import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka import document
from mamushka.errors import Invalid

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)  # fmt: skip


@given(VALUES)
def test_what_is_dumped_is_parsed_by_us_and_by_json(item: object) -> None:
    raw = document.dump(item)
    assert json.loads(raw) == item
    assert document.parse(raw, "the test") == item


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_invalid(raw: bytes) -> None:
    try:
        document.parse(raw, "the test")
    except Invalid:
        pass


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a":1,"a":2}', "stands twice"),
        (b"[" * 100, "nested deeper"),
        (b"[" * 1_000_000, "nested deeper"),
        (b"NaN", "not JSON"),
        (b"", "a value is missing"),
        (b"[1] x", "more follows"),
        (b"\xff", "not UTF-8"),
        (b"9" * 100, "100 digits"),
    ],
)
def test_hostile_documents_are_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        document.parse(raw, "the test")


def test_brackets_inside_strings_are_not_nesting() -> None:
    assert document.parse(document.dump(["[[[" * 50, '\\"' + "{" * 99]), "x") == [
        "[[[" * 50,
        '\\"' + "{" * 99,
    ]


def test_a_document_over_the_limit_is_refused() -> None:
    with pytest.raises(Invalid, match="more than the 10"):
        document.parse(b" " * 11, "the test", size_max=10)


def test_a_broken_document_is_invalid_where_json_was_never_imported() -> None:
    """CPython's scanner looks up its own error class in a module that we do not load."""
    script = """
import sys
from mamushka.document import Invalid, parse
assert "json" not in sys.modules
for raw in (b"{x", b'{"a" 1}', b'["a', b"[1,"):
    try:
        parse(raw, "it")
    except Invalid:
        continue
    raise AssertionError(raw)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
