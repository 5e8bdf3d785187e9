"""Copying in and out of a root that others fill, writable tops, volumes, deletion."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.spec.tar import DIRECTORY, LINK, SYMLINK, Member, Reader
from mamushka.spec.tar_write import END, header
from mamushka.storage import tree
from mamushka.storage.copy import copy
from mamushka.storage.pack import Packer
from mamushka.storage.remove import remove
from mamushka.storage.snapshot import SnapshotStore
from mamushka.storage.usage import usage
from mamushka.storage.volume import VolumeStore
from tests.unit.test_apply import ME, member


@pytest.fixture
def root(tmp_path: Path):  # type: ignore[no-untyped-def]
    where = tmp_path / "root"
    (where / "etc/sub").mkdir(parents=True)
    (where / "etc/file").write_bytes(b"content")
    (where / "etc/abs").symlink_to("/etc/file")
    (where / "out").symlink_to("/" + "../" * 20 + str(tmp_path)[1:])
    (tmp_path / "secret").write_bytes(b"secret")
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names(chunks: list[bytes]) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as opened:
        return opened.getnames()


def test_stat_looks_without_leaving(root: int) -> None:
    assert tree.stat(root, "/etc/file") == tree.stat(root, "etc/../etc//file")
    assert tree.stat(root, "/etc/file").size == 7
    assert tree.stat(root, "/etc/abs").link == "/etc/file"
    assert stat.S_ISDIR(tree.stat(root, "/etc/").mode) and tree.stat(root, "/etc/").name == "etc"
    assert tree.stat(root, "/").name == ""
    for path in ("/out/secret", "/no", "/etc/file/", "../../secret"):
        with pytest.raises(NotFound):
            tree.stat(root, path)


def test_pack_takes_a_file_or_a_tree(root: int) -> None:
    assert names(list(tree.pack(root, "/etc/file"))) == ["file"]
    assert names(list(tree.pack(root, "/etc", name="x"))) == ["x", "x/abs", "x/file", "x/sub"]
    assert names(list(tree.pack(root, "/etc/.", name="")))[1:] == ["abs", "file", "sub"]
    with pytest.raises(NotFound):
        list(tree.pack(root, "/out/secret"))


def test_what_is_packed_unpacks_the_same(root: int, tmp_path: Path) -> None:
    os.link("etc/file", "etc/second", src_dir_fd=root, dst_dir_fd=root)
    tree.unpack(root, "/etc/sub", list(tree.pack(root, "/etc", name="copy")))
    copied = tmp_path / "root/etc/sub/copy"
    assert (copied / "file").read_bytes() == b"content" and (copied / "file").stat().st_nlink == 2
    assert (copied / "file").stat().st_mtime_ns == (tmp_path / "root/etc/file").stat().st_mtime_ns


def test_unpack_replaces_files_and_keeps_directories(root: int, tmp_path: Path) -> None:
    tree.unpack(root, "/", [member("etc", DIRECTORY, mode=0o700) + member("etc/file", content=b"new") + END])
    assert (tmp_path / "root/etc/file").read_bytes() == b"new"
    assert (tmp_path / "root/etc/abs").is_symlink()
    assert (tmp_path / "root/etc").stat().st_mode & 0o777 == 0o700
    with pytest.raises(Conflict):
        tree.unpack(root, "/", [member("etc") + END])
    with pytest.raises(Conflict):
        tree.unpack(root, "/etc/file", [END])
    with pytest.raises(NotFound):
        tree.unpack(root, "/none", [END])


@pytest.mark.parametrize(
    "raw",
    [
        member("../secret", content=b"!"),
        member("a/../../secret", content=b"!"),
        header(Member(b"h", LINK, link=b"../secret", **ME)),
        member("deep/" * 300 + "x"),
    ],
)
def test_unpack_never_leaves(root: int, tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(Invalid):
        tree.unpack(root, "/", [raw + END])
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_links_in_the_way_stay_inside(root: int, tmp_path: Path) -> None:
    with pytest.raises((NotFound, Invalid)):
        tree.unpack(root, "/", [header(Member(b"h", LINK, link=b"out/secret", **ME)) + END])
    raw = member("s", SYMLINK, link="/etc/sub") + member("s/new", content=b"x") + member("out", content=b"x")
    tree.unpack(root, "/", [raw + END])
    assert (tmp_path / "root/etc/sub/new").read_bytes() == b"x"
    assert not (tmp_path / "root/out").is_symlink()


def test_a_copy_has_everything(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "d").mkdir(parents=True)
    target.mkdir()
    (source / "d/f").write_bytes(b"x" * 70000)
    os.link(source / "d/f", source / "g")
    (source / "l").symlink_to("nowhere")
    os.mkfifo(source / "p", 0o600)
    with open(source / "sparse", "wb") as file:
        file.truncate(50 << 20)
        file.seek(30 << 20)
        file.write(b"middle")
    os.chmod(source / "d", 0o1750)
    os.utime(source / "d", ns=(5, 123456789))
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
    copy(*descriptors)
    archives = [archive(fd) for fd in descriptors]
    for fd in descriptors:
        os.close(fd)
    assert archives[0] == archives[1]
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (target / "g").stat().st_nlink == 2


def archive(fd: int) -> list[Member]:
    return list(Reader(tree.pack(fd, "/", name="")))


def test_removal_of_deep_and_wide_trees(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "t")
    here = os.open(tmp_path / "t", os.O_RDONLY)
    for depth in range(700):  # twice as long as a path may be
        os.mkdir("d" * 12, dir_fd=here)
        if depth % 50 == 0:
            os.close(os.open("file", os.O_CREAT, dir_fd=here))
        below = os.open("d" * 12, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (tmp_path / "outside").mkdir()
    (tmp_path / "t/link").symlink_to(tmp_path / "outside")
    remove(tmp_path / "t")
    remove(tmp_path / "t")
    assert os.listdir(tmp_path) == ["outside"]


def test_usage_counts_an_inode_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("/etc")
    found = usage(str(tmp_path))
    assert (found.size, found.entries) == (1000, 3)


def test_a_writable_top_lives_and_ends(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path / "tops"))
    lower = tmp_path / "lower"
    lower.mkdir(mode=0o751)
    top = store.create("one", [str(lower)])
    assert os.stat(top.upper).st_mode & 0o7777 == 0o751
    with pytest.raises(Conflict):
        store.create("one", [str(lower)])
    assert store.get("one", [str(lower)]) == top and store.ids() == ["one"]
    Path(top.upper, "f").write_bytes(b"12345")
    assert top.size() == 5 and top.changes() == [("A", "/f")]
    store.create("two", [str(lower)])
    (tmp_path / "tops/.gone.half.1").mkdir()
    store.clean({"two"})
    assert os.listdir(tmp_path / "tops") == ["two"]
    store.remove("two")
    store.remove("two")
    with pytest.raises(NotFound):
        store.get("two", [])
    with pytest.raises(Invalid):
        store.create("../x", [str(lower)])


def test_volumes_are_made_found_filled_and_removed(tmp_path: Path) -> None:
    store = VolumeStore(str(tmp_path / "volumes"))
    volume = store.create("data", labels={"a": "b"})
    assert store.create("data") == volume == store.get("data")
    assert store.volumes() == [volume]
    with pytest.raises(Conflict):
        store.create("data", options={"type": "none"})
    source = tmp_path / "image"
    (source / "sub").mkdir(parents=True, mode=0o700)
    (source / "sub/f").write_bytes(b"123")
    fd = os.open(source, os.O_RDONLY)
    assert store.populate("data", fd) and not store.populate("data", fd)
    assert Path(volume.path, "sub/f").read_bytes() == b"123"
    assert store.usage("data").size == 3
    store.create("bare")
    assert not store.populate("bare") and not store.populate("bare", fd)
    os.close(fd)
    (tmp_path / "volumes/.half.1").mkdir()
    (tmp_path / "volumes/bare/copy").mkdir()
    store.clean()
    assert not (tmp_path / "volumes/bare/copy").exists()
    store.remove("data")
    with pytest.raises(NotFound):
        store.remove("data")
    assert sorted(os.listdir(tmp_path / "volumes")) == ["bare"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "_a", "a b", "é", "a\0", "a" * 201])
def test_names_that_no_volume_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        VolumeStore(str(tmp_path)).create(name)


def test_a_file_that_vanishes_is_left_out(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert list(Packer().add(b"gone", fd, b"gone")) == []
    os.close(fd)


def test_entries_are_what_a_directory_holds(root: int) -> None:
    assert {entry.name for entry in tree.entries(root, "/etc")} == {"sub", "file", "abs"}
    assert {entry.name: entry.link for entry in tree.entries(root, "etc")}["abs"] == "/etc/file"
    with pytest.raises(Invalid):
        tree.entries(root, "/etc/file")
    with pytest.raises(NotFound):
        tree.entries(root, "/out")


def test_remove_takes_one_name_and_never_follows_it(root: int, tmp_path: Path) -> None:
    tree.remove(root, "/out")
    tree.remove(root, "/etc/abs")
    assert (tmp_path / "secret").exists() and tree.stat(root, "/etc/file").size == 7
    with pytest.raises(Conflict, match="not empty"):
        tree.remove(root, "/etc")
    tree.remove(root, "/etc", recursive=True)
    for recursive in (False, True):
        with pytest.raises(NotFound):
            tree.remove(root, "/etc", recursive=recursive)
        with pytest.raises(Invalid):
            tree.remove(root, "/..", recursive=recursive)


def test_a_hint_to_spread_is_harmless_anywhere(tmp_path: Path) -> None:
    from mamushka.linux.inode import spread

    for path in (tmp_path, Path("/proc/self")):
        spread(str(path))
    assert os.listdir(tmp_path) == []
