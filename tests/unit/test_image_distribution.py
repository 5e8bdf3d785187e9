"""The registry's words: whatever a server says is parsed or refused, and is fit to be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Denied, Invalid, NotFound, Unavailable
from mamushka.spec.distribution import (
    content_range,
    failure,
    next_page,
    parse_challenges,
    parse_tags,
    parse_token,
    plain,
    upload_offset,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a b"', [("basic", {"realm": "a b"})]),
        (
            'Bearer realm="https://x/t",service="r",scope="repository:a:pull,push"',
            [("bearer", {"realm": "https://x/t", "service": "r", "scope": "repository:a:pull,push"})],
        ),
        (
            'Negotiate, Bearer Realm=x , error="a\\"b", Basic',
            [("negotiate", {}), ("bearer", {"realm": "x", "error": 'a"b'}), ("basic", {})],
        ),
        ("Negotiate YWJj==, Basic realm=y", [("negotiate", {}), ("basic", {"realm": "y"})]),
        ("", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(header)] == expected


@given(st.one_of(st.text(max_size=80), st.text('aB =,"\\/', max_size=40)))
def test_any_challenge_is_parsed_or_invalid(header: str) -> None:
    try:
        parse_challenges(header)
    except Invalid:
        pass


_quoted = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
_name = st.from_regex(r"\A[a-z]{1,8}\Z")


@given(st.lists(st.tuples(_name, st.dictionaries(_name, _quoted, max_size=4)), max_size=4))
def test_what_a_server_writes_is_read(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{key}={quote(text)}" for key, text in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(header)] == challenges


def test_tokens() -> None:
    assert parse_token(b'{"access_token": "t", "expires_in": 300}').life == 300
    assert parse_token(b'{"token": "t", "expires_in": 5}').life == 60
    assert parse_token(b'{"token": "t", "expires_in": 1e30}').life == 86400


def test_tags() -> None:
    assert parse_tags(b'{"name": "x", "tags": null}') == []
    with pytest.raises(Invalid):
        parse_tags(b'{"tags": [1]}')


def test_links() -> None:
    assert next_page('</v2/_catalog?n=1&last=x>; rel="next"') == "/v2/_catalog?n=1&last=x"
    assert next_page('<a>; rel="prev", <b>; rel=next') == "b"
    assert next_page("nonsense") == next_page("") == ""


def test_ranges() -> None:
    assert content_range("bytes 0-9/10") == (0, 9, 10)
    assert content_range("bytes 5-9/*") == (5, 9, -1)
    for bad in ("", "bytes 0-9", "lines 0-9/10", "bytes a-b/c", "bytes 0-9/" + "9" * 30, "bytes ٠-٩/١٠"):
        with pytest.raises(Invalid):
            content_range(bad)
    assert upload_offset("0-1023") == 1024
    assert upload_offset("bytes=0-99") == 100
    assert upload_offset("") == upload_offset("0-0") == 0
    with pytest.raises(Invalid):
        upload_offset("0-x")


@given(st.text(max_size=60))
def test_any_range_is_parsed_or_invalid(header: str) -> None:
    for parse in (content_range, upload_offset):
        try:
            parse(header)
        except Invalid:
            pass


@given(st.integers(400, 599), st.binary(max_size=200))
def test_every_refusal_is_fit_for_a_terminal(status: int, raw: bytes) -> None:
    error = failure(status, raw, "cannot do it")
    assert str(error).isprintable()
    assert isinstance(error, Denied | NotFound | Unavailable | Invalid)


def test_texts_are_cut_and_cleaned() -> None:
    assert plain("a\x1b[31m\r\n b") == "a [31m b"
    assert len(plain("x" * 10_000)) == 401
    said = failure(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "gone\\u0007"}]}', "cannot pull x")
    assert str(said) == "cannot pull x: the registry answered 404: NAME_UNKNOWN: gone"
