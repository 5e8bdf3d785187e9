"""criu's messages as bytes, and what its log says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.criu import rpc
from mamushka.container.criu.failure import Failed, errors, explained
from mamushka.errors import Conflict, Invalid, MamushkaError, Unsupported


def test_bytes_are_protobufs() -> None:
    """As protobuf's own encoding guide has them: 150 in field 1, "testing" in field 2, a message in field 3."""
    assert rpc.encode({"a": 150}, {"a": 1}) == b"\x08\x96\x01"
    assert rpc.encode({"b": "testing"}, {"b": 2}) == b"\x12\x07testing"
    assert rpc.encode({"c": {"a": 150}}, {"c": (3, {"a": 1})}) == b"\x1a\x03\x08\x96\x01"
    assert rpc.encode({"a": -1}, {"a": 1}) == b"\x08" + b"\xff" * 9 + b"\x01"
    assert rpc.encode({"b": ["x", "y"], "a": None}, {"a": 1, "b": 2}) == b"\x12\x01x\x12\x01y"


@given(st.integers(0, (1 << 64) - 1), st.text(max_size=300), st.booleans())
def test_what_is_written_is_read(number: int, text: str, flag: bool) -> None:
    fields = {"number": 1, "text": 200, "flag": 3, "inner": (4, {"number": 1})}
    message = {"number": number, "text": text, "flag": flag, "inner": {"number": number}}
    assert rpc.decode(rpc.encode(message, fields), fields) == message


def test_what_a_later_criu_adds_is_passed_over() -> None:
    more = b"\x61" + bytes(8) + b"\x6d" + bytes(4) + b"\x4a\x02ab" + b"\x70\x01"
    assert rpc.decode(more + b"\x10\x01", rpc.RESPONSE) == {"success": 1, "cr_errmsg": "ab"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_invalid(raw: bytes) -> None:
    try:
        rpc.decode(raw, {"a": 1, "b": 2, "c": (3, {"a": 1, "c": (2, {"a": 1})})})
    except Invalid:
        pass


LOG = """(00.01) Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory
(00.02) 	Dumping
(00.03) Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established option.
(00.04) pie: 1: Error (criu/pie/restorer.c:1): again
(00.04) Error (criu/cr-dump.c:2053): Dumping FAILED.
(00.05) Error (criu/cr-dump.c:2053): Dumping FAILED.
"""


def test_a_log_says_why() -> None:
    assert errors(LOG) == [
        "inet: Connected TCP socket, consider using --tcp-established option.",
        "again",
        "Dumping FAILED.",
    ]


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        (LOG, Conflict, "--tcp-established"),
        ("Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds", Unsupported, "criu 4.1"),
        ("Error (criu/x.c:1): something else", MamushkaError, ""),
        ("", MamushkaError, ""),
    ],
)
def test_an_error_names_its_reason(said: str, kind: type[MamushkaError], hint: str) -> None:
    error = explained(Failed("its own", said), "cannot checkpoint x", "/nowhere/dump.log")
    assert type(error) is kind
    assert hint in error.hint
    assert str(error).startswith("cannot checkpoint x: criu failed: ")
    assert "log file" not in str(error)
