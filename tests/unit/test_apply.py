"""A layer becomes a directory, and a layer that lies becomes nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from mamushka.errors import Invalid, NotFound
from mamushka.spec.tar import BLOCK, CHARACTER, DIRECTORY, FIFO, LINK, REGULAR, SYMLINK, Member
from mamushka.spec.tar_write import END, header, padding
from mamushka.storage.apply import Limits, apply
from mamushka.storage.layers import LayerStore

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices and trusted attributes")
ME = {"uid": os.geteuid(), "gid": os.getegid()}


def member(name: str, kind: bytes = REGULAR, *, link: str = "", content: bytes = b"", **fields: object) -> bytes:
    given = {"mode": 0o755 if kind == DIRECTORY else 0o644, "mtime_ns": 10**18 + 1, **ME, **fields}
    made = Member(name.encode(), kind, size=len(content), link=link.encode(), **given)  # type: ignore[arg-type]
    return header(made) + content + padding(len(content))


def layer(*members: bytes) -> bytes:
    return b"".join(members) + END


def unpack(where: Path, *members: bytes, limits: Limits | None = None) -> Path:
    where.mkdir()
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        apply(fd, [layer(*members)], limits=limits)
    finally:
        os.close(fd)
    return where


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def test_files_directories_links_and_their_attributes(tmp_path: Path) -> None:
    root = unpack(
        tmp_path / "r",
        member("./", DIRECTORY, mode=0o711, mtime_ns=5),
        member("./d/", DIRECTORY, mode=0o1777, mtime_ns=10**9 + 7),
        member("d/f", content=b"hello", mode=0o4755),
        member("d/g", LINK, link="d/f"),
        member("d/s", SYMLINK, link="/no/where"),
        member("d/p", FIFO, mode=0o622),
    )
    assert (root.stat().st_mode & 0o7777, root.stat().st_mtime_ns) == (0o711, 5)
    assert ((root / "d").stat().st_mode & 0o7777, (root / "d").stat().st_mtime_ns) == (0o1777, 10**9 + 7)
    assert (root / "d/g").read_bytes() == b"hello"
    assert (root / "d/f").stat().st_mode & 0o7777 == 0o4755
    assert (root / "d/f").stat().st_ino == (root / "d/g").stat().st_ino
    assert (root / "d/f").stat().st_mtime_ns == 10**18 + 1
    assert os.readlink(root / "d/s") == "/no/where"
    assert (root / "d/s").lstat().st_mtime_ns == 10**18 + 1
    assert stat.S_IMODE((root / "d/p").stat().st_mode) == 0o622


@root_only
def test_owners_devices_and_extended_attributes(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    root = unpack(
        tmp_path / "r",
        member("f", uid=7, gid=8, mode=0o6755, xattrs=(("security.capability", capability), ("user.a", b"\0\xff"))),
        member("c", CHARACTER, major=1, minor=3, mode=0o666, uid=9),
        member("b", BLOCK, major=7, minor=300, mode=0o600),
        member("s", SYMLINK, link="x", uid=3, xattrs=(("trusted.t", b"1"),)),
        member("d", DIRECTORY, gid=4, xattrs=(("user.d", b"2"), ("trusted.overlay.redirect", b"/f"))),
    )
    found = (root / "f").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (7, 8, 0o6755)
    assert os.getxattr(root / "f", "security.capability") == capability
    assert os.getxattr(root / "f", "user.a") == b"\0\xff"
    assert (root / "c").stat().st_rdev == os.makedev(1, 3)
    assert (root / "c").stat().st_mode == stat.S_IFCHR | 0o666
    assert (root / "b").stat().st_rdev == os.makedev(7, 300)
    assert os.getxattr(root / "s", "trusted.t", follow_symlinks=False) == b"1"
    assert (root / "s").lstat().st_uid == 3
    assert os.listxattr(root / "d") == ["user.d"], "what overlayfs would believe is not taken over"


@root_only
def test_whiteouts_take_overlay_form(tmp_path: Path) -> None:
    root = unpack(
        tmp_path / "r",
        member("d", DIRECTORY),
        member("d/.wh.gone"),
        member("o", DIRECTORY),
        member("o/kept"),
        member("o/.wh..wh..opq"),
        member(".wh..wh.plnk", DIRECTORY),
    )
    assert is_whiteout(root / "d/gone")
    assert opaque(root / "o") and (root / "o/kept").is_file()
    assert sorted(os.listdir(root)) == ["d", "o"]


@root_only
@pytest.mark.parametrize("whiteout_first", [True, False])
def test_a_whiteout_means_lower_layers_only(tmp_path: Path, whiteout_first: bool) -> None:
    whiteouts = (member(".wh.f"), member(".wh.d"), member(".wh.e"))
    entries = (member("f", content=b"new"), member("d", DIRECTORY), member("d/x"), member("e/implicit"))
    root = unpack(tmp_path / "r", *(whiteouts + entries if whiteout_first else entries + whiteouts))
    assert (root / "f").read_bytes() == b"new"
    assert opaque(root / "d") and (root / "d/x").is_file()
    assert opaque(root / "e") and (root / "e/implicit").is_file()


def test_later_members_replace_earlier_ones(tmp_path: Path) -> None:
    root = unpack(
        tmp_path / "r",
        member("f", content=b"old"),
        member("f", content=b"new"),
        member("d", DIRECTORY),
        member("d/deep/er"),
        member("d"),
        member("s", SYMLINK, link="f"),
        member("s", content=b"not through the link"),
        member("t", SYMLINK, link="f"),
        member("t", DIRECTORY),
        member("t/x"),
        member("k", DIRECTORY, mode=0o700),
        member("k/stays"),
        member("k", DIRECTORY, mode=0o750),
        member("f", LINK, link="f"),
    )
    assert (root / "f").read_bytes() == b"new"
    assert (root / "d").is_file()
    assert (root / "s").read_bytes() == b"not through the link"
    assert (root / "t/x").is_file() and not (root / "t").is_symlink()
    assert (root / "k/stays").is_file() and (root / "k").stat().st_mode & 0o777 == 0o750


def test_links_in_the_way_lead_around_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    root = unpack(
        tmp_path / "r",
        member("real/sub", DIRECTORY),
        member("abs", SYMLINK, link="/real"),
        member("up", SYMLINK, link="../../../../../../.." + str(tmp_path / "outside")),
        member("chain", SYMLINK, link="abs/../abs/./sub"),
        member("abs/one"),
        member("chain/two"),
        member("up/three"),
        member("hard", LINK, link="/abs/one"),
        member("/rooted//./name"),
    )
    assert (root / "real/one").is_file() and (root / "real/sub/two").is_file()
    assert (root / "hard").stat().st_nlink == 2
    assert not list((tmp_path / "outside").iterdir())
    assert (root / str(tmp_path / "outside")[1:] / "three").is_file()
    assert (root / "rooted/name").is_file()


def test_holes_stay_holes(tmp_path: Path) -> None:
    from tests.unit.test_tar import pax

    raw = pax({"GNU.sparse.map": "1048576,5", "GNU.sparse.size": "8388608"}, b"abcde", **ME)
    (tmp_path / "r").mkdir()
    fd = os.open(tmp_path / "r", os.O_RDONLY)
    apply(fd, [raw])
    os.close(fd)
    found = (tmp_path / "r/f").stat()
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (8 << 20, True)
    assert (tmp_path / "r/f").read_bytes().strip(b"\0") == b"abcde"


HOSTILE: dict[str, tuple[bytes, ...]] = {
    "a way up": (member("../evil"),),
    "a way up inside": (member("a/../../evil"),),
    "a hard link out": (member("h", LINK, link="../../../../etc/passwd"),),
    "a hard link to nothing": (member("h", LINK, link="etc/passwd"),),
    "a hard link to the host": (member("h", LINK, link="/etc/passwd"),),
    "a hard link through a link": (member("l", SYMLINK, link="/etc"), member("h", LINK, link="l/passwd")),
    "a hard link to a directory": (member("d", DIRECTORY), member("h", LINK, link="d")),
    "a hard link to the root": (member("h", LINK, link="."),),
    "below a file": (member("f"), member("f/below")),
    "a circle of links": (member("a", SYMLINK, link="b"), member("b", SYMLINK, link="a"), member("a/x")),
    "a root that is a file": (member("./"[:1]),),
    "a root that is a link": (member(".", SYMLINK, link="/etc"),),
    "a whiteout of the parent": (member("d", DIRECTORY), member("d/.wh..")),
    "a whiteout of nothing": (member(".wh."),),
    "a link to nothing": (member("s", SYMLINK),),
    "a device of no number": (member("c", CHARACTER, major=1 << 14, minor=0),),
    "too many bytes": (member("f", content=bytes(30_000)),),
    "too many entries": tuple(member(str(n)) for n in range(12)),
    "too long names": tuple(member(f"{n}" * 200) for n in range(8)),
    "directories replaced without end": (member("d", DIRECTORY), member("d")) * 1001,
    "cut off": (member("f", content=bytes(512))[:-100],),
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_layer_that_lies_is_refused_and_leaves_nothing(tmp_path: Path, members: tuple[bytes, ...]) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    limits = Limits(size=20_000, entries=10, names=1000) if len(members) < 20 else Limits()
    raw = b"".join(members) if len(members[-1]) % 512 else layer(*members)
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    with pytest.raises(Invalid):
        store.apply(diff_id, [raw], limits=limits)
    assert not store.has(diff_id)
    assert [str(path.relative_to(store.root)) for path in Path(store.root).rglob("*") if not path.is_dir()] == []
    assert os.listdir(tmp_path) == ["layers"]


def test_a_component_that_no_file_system_holds_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    raw = layer(member("n" * 256))
    with pytest.raises(OSError, match="too long"):
        store.apply("sha256:" + hashlib.sha256(raw).hexdigest(), [raw])
    assert os.listdir(f"{store.root}/staging") == []


def test_the_store_keeps_a_layer_by_its_digest(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    raw = layer(member("d/f", content=b"hello"))
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    applied = store.apply(diff_id, (raw[start : start + 100] for start in range(0, len(raw), 100)))
    assert (applied.size, applied.entries, applied.implicit) == (5, 1, ("", "d"))
    assert store.apply(diff_id, iter(())) == applied == store.get(diff_id)
    assert store.layers() == [applied]
    assert Path(store.path(diff_id), "d/f").read_bytes() == b"hello"
    store.remove(diff_id)
    store.remove(diff_id)
    assert not store.has(diff_id) and store.layers() == []
    with pytest.raises(NotFound):
        store.path(diff_id)


def test_another_digest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    with pytest.raises(Invalid, match="unpacks to sha256"):
        store.apply("sha256:" + "0" * 64, [layer(member("f"))])
    assert os.listdir(f"{store.root}/staging") == [] == os.listdir(f"{store.root}/sha256")


def test_what_a_killed_process_left_is_cleaned_and_does_not_hinder(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    raw = layer(member("f"))
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    left = Path(store.root, "staging", diff_id[7:])
    (left / "root/half").mkdir(parents=True)
    Path(f"{left}.lock").touch()
    store.apply(diff_id, [raw])
    assert os.listdir(Path(store.root, "staging")) == []
    (left / "root/half").mkdir(parents=True)
    Path(f"{left}.4711").mkdir()
    store.clean()
    assert os.listdir(Path(store.root, "staging")) == []
