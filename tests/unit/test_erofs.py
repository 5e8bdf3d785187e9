"""EROFS images without a kernel: read back here by the words of the format, and the limits of what fits."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.storage import erofs
from mamushka.storage.erofs import directory, layout, xattrs
from mamushka.storage.erofs.format import crc32c, encoded_device
from mamushka.storage.erofs.scan import Node, scan
from mamushka.storage.erofs.writing import Stream
from mamushka.storage.placement import BLOCK, BLOCK_MAX, PMEM, PMEM_MAX, cost, placement
from tests.erofs import names_of

GIB = 1 << 30


def make(where: Path, image: Path) -> erofs.Image:
    root, out = os.open(where, os.O_RDONLY), os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return erofs.write(root, out, bytes(range(16)))
    finally:
        os.close(root)
        os.close(out)


def test_what_is_written_can_be_walked(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    for number in range(500):
        (tree / "d" / f"{number:03}-{'x' * 60}").write_bytes(b"%d" % number)
    (tree / "d" / "-first").write_bytes(b"y" * 9000)
    (tree / "to").symlink_to("d/-first")
    made = make(tree, tmp_path / "image")
    raw = (tmp_path / "image").read_bytes()
    magic, checksum, _, bits, _, root, inodes, _, _, blocks = struct.unpack_from("<IIIBBHQQII", raw, 1024)
    assert (magic, bits, inodes, blocks * 4096) == (0xE0F5E1E2, 12, 504, made.size)
    assert checksum == crc32c(raw[1024:1028] + bytes(4) + raw[1032:4096])
    top = {name: (nid, kind) for name, nid, kind in names_of(raw, root)}
    assert top.keys() == {b".", b"..", b"d", b"to"} and top[b"."] == top[b".."] == (root, 2)
    below = [name for name, _, _ in names_of(raw, top[b"d"][0])]
    assert below == sorted(below) and len(below) == 503 and below[0] == b"-first"
    nid = {name: nid for name, nid, _ in names_of(raw, top[b"d"][0])}[b"-first"]
    start = struct.unpack_from("<I", raw, nid * 32 + 16)[0] * 4096
    assert raw[start : start + 9000] == b"y" * 9000 and not any(raw[start + 9000 : start + 12288])


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283  # RFC 3720, B.4, and every catalogue of CRCs


def test_device_numbers_are_the_kernels() -> None:
    assert encoded_device(0, 0) == 0
    assert encoded_device(8, 1) == 0x801
    assert encoded_device(259, 0xFFFFF) == 0xFFF103FF


@given(st.lists(st.binary(min_size=1, max_size=255), unique=True, max_size=300))
def test_a_directory_is_as_long_as_was_planned(names: list[bytes]) -> None:
    entries = [(name, number, 1) for number, name in enumerate(sorted([*names, b".."]))]
    content = directory.content(entries)
    assert len(content) == directory.size(name for name, _, _ in entries)
    found = []
    for first in range(0, len(content), 4096):
        block = content[first : first + 4096]
        found += [struct.unpack_from("<Q", block, at)[0] for at in range(0, struct.unpack_from("<QH", block)[1], 12)]
    assert found == list(range(len(entries)))


def test_attributes_that_are_not_an_images_stay_behind() -> None:
    given_attributes = {
        "user.overlay.opaque": b"y",
        "trusted.overlay.redirect": b"/etc",
        "security.selinux": b"label",
        "btrfs.compression": b"zstd",
        "user.a": b"1",
    }
    kept = xattrs.entries(b"d", given_attributes)
    assert [entry[4 : 4 + entry[0]] for entry in kept] == [b"overlay.opaque", b"a"]
    assert [entry[1] for entry in kept] == [4, 1]


def test_attributes_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"b'f' has an attribute 'user.x' of 65536 bytes"):
        xattrs.entries(b"f", {"user.x": bytes(65536)})
    with pytest.raises(Invalid, match="more than 262148 bytes"):
        xattrs.entries(b"f", {f"user.{number}": bytes(65535) for number in range(4)})


def test_shared_attributes_are_there_once() -> None:
    one, two = xattrs.entries(b"", {"user.a": b"x" * 50, "user.b": b"1"}), xattrs.entries(b"", {"user.a": b"x" * 50})
    shared = xattrs.Shared([one, two, ()])
    assert len(shared.area) == 56 and shared.body(()) == b""
    assert shared.body(two) == bytes(4) + b"\1" + bytes(7) + bytes(4)
    assert shared.body(one) == shared.body(two) + one[1]


def test_a_layer_that_needs_too_many_blocks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    root = os.open(tmp_path, os.O_RDONLY)
    directories = scan(root)
    os.close(root)
    node: Node = directories[0].entries[0][1]
    node.size = node.taken = 1 << 45
    with pytest.raises(Invalid, match="16 TiB"):
        layout.plan(directories, xattrs.Shared([]), lambda _directory, _name: -1)


def test_a_file_that_shrinks_meanwhile_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (3000, 300_000):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree/file").write_bytes(bytes(size))
        monkeypatch.setattr(os, "ftruncate", lambda fd, length: os.truncate(tmp_path / "tree/file", 10))
        with pytest.raises(Conflict, match="became shorter"):
            make(tmp_path / "tree", tmp_path / "image")


def test_without_copy_file_range_the_content_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "EXDEV")

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(3 << 20))
    make(tmp_path / "tree", tmp_path / "one")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    make(tmp_path / "tree", tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "tree/file").read_bytes() in (tmp_path / "one").read_bytes()


def test_a_stream_writes_what_it_was_given_where_it_was_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    stream = Stream(fd)
    for position, piece in ((10, b"a" * 5000), (5010, b"b"), (9000, b"c"), (5 << 20, b"d" * (2 << 20))):
        stream.put(position, piece)
    stream.flush()
    os.close(fd)
    raw = (tmp_path / "file").read_bytes()
    assert len(raw) == 7 << 20 and raw[:9001] == bytes(10) + b"a" * 5000 + b"b" + bytes(3989) + b"c"
    assert not any(raw[9001 : 5 << 20]) and raw[5 << 20 :] == b"d" * (2 << 20)


def test_layers_are_mapped_while_they_cost_little() -> None:
    assert cost(GIB) == 16 << 20
    assert placement([], GIB) == ()
    assert placement([30 << 20, 120 << 20], 256 << 20) == (PMEM, PMEM)
    assert placement([30 << 20, 10 * GIB, 120 << 20], 256 << 20) == (PMEM, BLOCK, PMEM)
    assert placement([10 * GIB], 4 * GIB) == (PMEM,)
    assert placement([3 * GIB, 3 * GIB], GIB) == (PMEM, BLOCK), "the upper one of equals"


def test_more_layers_than_lines_are_mapped_at_a_price() -> None:
    lengths = [700 << 20] * 11
    assert placement(lengths, GIB).count(PMEM) == 5
    assert placement(lengths, GIB // 4).count(BLOCK) == BLOCK_MAX
    with pytest.raises(Unsupported, match="64 MiB of memory 11 layers"):
        placement(lengths, 64 << 20)
    with pytest.raises(Unsupported):
        placement([2 << 20] * (PMEM_MAX + BLOCK_MAX + 1), GIB)


@given(st.lists(st.integers(1, 1 << 36).map(lambda size: size << 12), max_size=120), st.integers(1 << 26, 1 << 40))
def test_whatever_is_placed_fits(lengths: list[int], memory: int) -> None:
    try:
        kinds = placement(lengths, memory)
    except Unsupported:
        return
    mapped = [length for length, kind in zip(lengths, kinds, strict=True) if kind == PMEM]
    assert sum(map(cost, mapped)) <= memory // 4 and len(mapped) <= PMEM_MAX
    assert len(kinds) == len(lengths) and kinds.count(BLOCK) <= BLOCK_MAX


def test_zeros_are_never_written_over_what_lies_between_two_pieces(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "ac":
        (tree / name).write_bytes(name.encode() * 4096)
    (tree / "b").write_bytes(b"b" * 4096)
    os.truncate(tree / "b", 100_000)  # one chunk, copied by the kernel while the stream holds its neighbours
    if (tree / "b").stat().st_blocks > 8:
        pytest.skip("this file system has no holes of this size")
    make(tree, tmp_path / "image")
    assert b"a" * 4096 + b"b" * 4096 + b"c" * 4096 in (tmp_path / "image").read_bytes()
