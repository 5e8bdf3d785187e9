"""Compressed streams: every form and cut gives the same bytes, and a bomb or a torn stream is refused."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.image import compression
from mamushka.image.compression import PIECE, decompress, detect

CONTENT = os.urandom(300_000) + bytes(3 * PIECE) + b"end"
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


def zstd(content: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd" if compression_is_missing() else "compression.zstd")
    packed: bytes = module.compress(content)
    return packed


def compression_is_missing() -> bool:
    import sys

    return sys.version_info < (3, 14)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "gzip members": lambda content: gzip.compress(content[:1000]) + gzip.compress(b"") + gzip.compress(content[1000:]),
    "gzip padded": lambda content: gzip.compress(content) + bytes(1024),
    "zstd": zstd,
    "zstd frames": lambda content: SKIPPABLE + zstd(content[:5]) + SKIPPABLE + zstd(content[5:]) + SKIPPABLE,
}


def cut(content: bytes, step: int) -> Iterator[bytes]:
    for start in range(0, len(content), step):
        yield content[start : start + step]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [1 << 20, 7777])
@pytest.mark.parametrize("isal", [True, False])
def test_forms(form: str, step: int, isal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isal:
        monkeypatch.setattr(compression, "_gzip", lambda: zlib)
    stored = FORMS[form](CONTENT)
    pieces = list(decompress(cut(stored, step), size=len(stored)))
    assert b"".join(pieces) == CONTENT
    if form != "plain":
        assert max(map(len, pieces)) <= PIECE


@given(st.binary(max_size=2000), st.integers(1, 50), st.sampled_from(sorted(FORMS)))
def test_in_pieces_equals_at_once(content: bytes, step: int, form: str) -> None:
    if form == "plain" and detect(content) != compression.PLAIN:
        return
    stored = FORMS[form](content)
    assert b"".join(decompress(cut(stored, step), size=len(stored))) == content


@given(st.binary(max_size=300), st.sampled_from([b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", SKIPPABLE]))
def test_any_bytes_are_expanded_or_invalid(noise: bytes, head: bytes) -> None:
    try:
        list(decompress([head + noise], size=100))
    except Invalid:
        pass


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_torn(form: str) -> None:
    stored = FORMS[form](CONTENT)
    with pytest.raises(Invalid, match="ends in the middle"):
        list(decompress([stored[:-5]], size=len(stored)))


def test_damaged() -> None:
    stored = bytearray(gzip.compress(CONTENT))
    stored[len(stored) // 2] ^= 0xFF
    with pytest.raises(Invalid):
        list(decompress([bytes(stored)], size=len(stored)))


def test_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FLOOR", 2 * PIECE)
    stored = zstd(bytes(64 * PIECE))
    seen = 0
    with pytest.raises(Invalid, match="expands beyond"):
        for piece in decompress([stored], size=100):
            seen += len(piece)
    assert seen <= 2 * PIECE


def test_empty() -> None:
    assert list(decompress([], size=0)) == []
