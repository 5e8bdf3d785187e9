"""References: Docker's examples, the grammar's corners, and properties over generated names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.spec.reference import Reference, parse

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("alpine", "docker.io/library/alpine", "alpine"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine", "alpine"),
        ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"),
        ("Host/app", "Host/app", "Host/app"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("[fe80::1]/a/b", "[fe80::1]/a/b", "[fe80::1]/a/b"),
        ("ghcr.io/a__b/c-d--e/f.g", "ghcr.io/a__b/c-d--e/f.g", "ghcr.io/a__b/c-d--e/f.g"),
        (f"alpine@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}", f"alpine@sha256:{HEX}"),
        (f"a:1@sha256:{HEX}", f"docker.io/library/a:1@sha256:{HEX}", f"a:1@sha256:{HEX}"),
        ("docker.io/foo.bar/x", "docker.io/foo.bar/x", "docker.io/foo.bar/x"),
        ("docker.io/localhost/x", "docker.io/localhost/x", "docker.io/localhost/x"),
        (HEX[:63], f"docker.io/library/{HEX[:63]}", HEX[:63]),
    ],
)
def test_names(text: str, full: str, familiar: str) -> None:
    reference = parse(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert parse(full) == parse(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "Alpine",
        "a/B",
        "a//b",
        "/a",
        "a/",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a.-b",
        "a_-b",
        "a:",
        "a:-x",
        "a:" + "t" * 129,
        "a@",
        "a@sha256:abc",
        f"a@sha256:{HEX.upper()}",
        f"a@md5:{HEX[:32]}",
        "a b",
        "a\n",
        "ä",
        "host.:/x",
        "-host.io/x",
        "host.io:port/x",
        "host.io:99999/x",
        "[::1/x",
        "[::g]/x",
        "[::1]5000/x",
        "host.io/" + "a" * 256,
        "x" * 5000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert len(str(caught.value)) < 1000


def test_tag_and_digest() -> None:
    reference = parse(f"localhost:5000/x:1@sha256:{HEX}")
    assert reference.selector == f"sha256:{HEX}"
    assert parse("x").with_default_tag().tag == "latest"
    assert reference.with_default_tag() is reference
    assert reference.with_tag("2") == Reference("localhost:5000", "x", "2")
    with pytest.raises(Invalid):
        reference.with_tag("not a tag")


_component = st.from_regex(r"\A[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,2}\Z").filter(lambda text: len(text) < 40)
_label = st.from_regex(r"\A[a-zA-Z0-9]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?\Z")
_registry = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.tuples(_label, _label, st.integers(0, 65535)).map(lambda parts: f"{parts[0]}.{parts[1]}:{parts[2]}"),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
_repository = st.lists(_component, min_size=1, max_size=4).map("/".join)
_tag = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_digest = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__)


@given(_registry, _repository, st.one_of(st.just(""), _tag), st.one_of(st.just(""), _digest))
def test_what_is_written_is_read(registry: str, repository: str, tag: str, digest: str) -> None:
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    reference = Reference(registry, repository, tag, digest)
    assert parse(str(reference)) == reference
    if len(reference.familiar) != 64:
        assert parse(reference.familiar) == reference


@given(st.one_of(st.text(), st.text("aA0.:/@_-[]", max_size=40)))
def test_any_text_is_parsed_or_invalid(text: str) -> None:
    try:
        reference = parse(text)
    except Invalid:
        return
    assert parse(str(reference)) == reference
