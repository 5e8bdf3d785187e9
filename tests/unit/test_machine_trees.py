"""Trees out of a guest: whatever comes is parsed or a GuestFault, the same in pieces as at once; and what goes in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.engine.machine_files import _show, _stream
from mamushka.errors import GuestFault, Invalid
from mamushka.machine.agent import tree, words
from mamushka.machine.agent.protocol import group, number, raw
from mamushka.machine.agent.tree import Entry, Unpacker
from mamushka.spec.tar import DIRECTORY, LINK, REGULAR, Member
from mamushka.spec.tar_write import END, header, padding


def item(name: bytes, mode: int = stat.S_IFREG | 0o644, size: int = 0, *more: bytes) -> bytes:
    fields = raw(words.K_NAME, name), number(words.K_MODE, mode), number(words.K_SIZE, size), *more
    return group(words.K_ITEM, *fields)


def parsed(data: bytes, step: int = 1 << 30, *, content: bool = True) -> list[Entry | bytes]:
    unpacker = Unpacker(content=content)
    found: list[Entry | bytes] = []
    for start in range(0, len(data), step):
        found += unpacker.feed(data[start : start + step])
    unpacker.end()
    return found


def outcome(data: bytes, step: int) -> list[Entry | bytes] | str:
    try:
        return parsed(data, step)
    except GuestFault:
        return "fault"


GOOD = st.builds(
    lambda name, body: item(name, size=len(body)) + (raw(words.K_DATA, body) if body else b""),
    st.from_regex(rb"\A[a-z]{1,3}(/[a-z]{1,3}){0,3}\Z"),
    st.binary(max_size=50),
)


@given(st.lists(GOOD | st.binary(max_size=40), max_size=6), st.integers(1, 30))
def test_any_bytes_are_parsed_or_a_fault_and_pieces_make_no_difference(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    assert outcome(data, step) == outcome(data, 1 << 30)


@given(st.lists(GOOD, max_size=6))
def test_what_is_whole_is_taken(parts: list[bytes]) -> None:
    assert outcome(b"".join(parts), 7) != "fault"


@pytest.mark.parametrize(
    "data",
    [
        item(b"../x"), item(b"/x"), item(b"a//b"), item(b"a/./b"), item(b"x" * 5000),
        item(b"x", size=3), item(b"x", size=1) + raw(words.K_DATA, b"xy"), raw(words.K_DATA, b"x"),
        item(b"x", size=1 << 63), item(b"x", size=2) + item(b"y"), raw(words.K_ARG, b"x"), item(b"x")[:-1],
        raw(words.K_ITEM, bytes(300_000)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_fault(data: bytes) -> None:
    with pytest.raises(GuestFault):
        parsed(data)


def test_without_content_none_comes() -> None:
    assert [entry.size for entry in parsed(item(b"x", size=1 << 40), content=False) if isinstance(entry, Entry)] == [
        1 << 40
    ]
    with pytest.raises(GuestFault):
        parsed(item(b"x", size=1) + raw(words.K_DATA, b"x"), content=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners are set")
def test_a_tree_is_shown_below_its_place_and_no_link_is_followed(tmp_path: Path) -> None:
    place, out = tmp_path / "place", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    directory, link = stat.S_IFDIR | 0o750, stat.S_IFLNK | 0o777
    good = item(b"d", directory) + item(b"d/f", size=1 << 30) + item(b"l", link, 0, raw(words.K_SOURCE, b"/etc"))
    _show(iter(parsed(good, content=False)), str(place))
    assert (place / "d/f").stat().st_size == 1 << 30 and os.readlink(place / "l") == "/etc"
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    for evil in (
        item(b"a", link, 0, raw(words.K_SOURCE, os.fsencode(out))) + item(b"a/x"),
        item(b"b", link, 0, raw(words.K_SOURCE, os.fsencode(out / "y"))) + item(b"b"),
        item(b"c/x"), item(b"e") + item(b"e/x"),
    ):  # fmt: skip
        with pytest.raises((GuestFault, OSError)):
            _show(iter(parsed(evil, content=False)), str(place))
    assert os.listdir(out) == []


def tar(*members: tuple[Member, bytes]) -> Iterator[bytes]:
    for member, content in members:
        yield header(member) + content + padding(len(content))
    yield END


def test_directories_get_their_attributes_when_all_is_in_them() -> None:
    given_ = tar(
        (Member(b"./d", DIRECTORY, 0o500, 5, 6), b""),
        (Member(b"d/f", REGULAR, 0o4711, 7, 8, 3, 9), b"abc"),
        (Member(b"d/h", LINK, link=b"./d/f"), b""),
    )
    found = parsed(b"".join(_stream(given_, None)), content=True)
    assert [(entry.name, entry.mode & 0o7777) if isinstance(entry, Entry) else entry for entry in found] == [
        (b"d", 0o755), (b"d/f", 0o4711), b"abc", (b"d/h", 0o644), (b"d", 0o500),
    ]  # fmt: skip
    owned = b"".join(_stream(tar((Member(b"x", uid=5, gid=6), b"")), (0, 0)))
    (entry,) = parsed(owned)
    assert isinstance(entry, Entry) and (entry.uid, entry.gid) == (0, 0)
    with pytest.raises(Invalid):
        list(_stream(tar((Member(b"a/../../x"), b"")), None))


def test_names_of_one_file_are_known() -> None:
    same = number(words.K_INODE, 7), number(words.K_FILESYSTEM, 1)
    first, second, other = (
        entry for entry in parsed(item(b"a", 0o100644, 0, *same) + item(b"b", 0o100644, 0, *same) + item(b"c"))
    )
    names = tree.Names()
    assert isinstance(first, Entry) and isinstance(second, Entry) and isinstance(other, Entry)
    assert (
        names.first(first, b"t/a") == b"" and names.first(second, b"t/b") == b"t/a" and names.first(other, b"c") == b""
    )
    found = tree.member(second, b"t/b", b"t/a")
    assert found is not None and (found.kind, found.link) == (LINK, b"t/a")
