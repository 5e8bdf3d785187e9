"""Layers made by others, applied and stacked: equal to what their own tools unpack, attribute for attribute."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamushka.errors import Invalid
from mamushka.spec.tar import Reader
from mamushka.storage import overlay
from mamushka.storage.layers import LayerStore
from mamushka.storage.snapshot import SnapshotStore
from tests import peers
from tests.images import Layout
from tests.integration.storage import trees

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def root() -> None:
    peers.need_root()


@pytest.mark.peer
def test_a_stacked_image_equals_umoci_unpack(layered_image: Layout, tmp_path: Path) -> None:
    peers.run("umoci", "unpack", "--image", layered_image.umoci, str(tmp_path / "theirs"))
    store = LayerStore(str(tmp_path / "layers"))
    mounted = overlay.mount(trees.apply(store, layered_image))
    try:
        ours = trees.look(f"/proc/self/fd/{mounted}")
    finally:
        os.close(mounted)
    theirs = trees.look(tmp_path / "theirs/rootfs")
    assert ours.keys() == theirs.keys()
    for path, row in ours.items():
        assert row == theirs[path], path


@pytest.mark.peer
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu", "--sparse"],
        ["--format=posix", "--xattrs", "--xattrs-include=*"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=ustar"],
        ["--format=v7"],
    ],
    ids=" ".join,
)
def test_what_gnu_tar_writes_equals_what_it_unpacks(tmp_path: Path, options: list[str]) -> None:
    source, theirs = tmp_path / "source", tmp_path / "theirs"
    (source / "a/b").mkdir(parents=True)
    theirs.mkdir()
    (source / "a/b/file").write_bytes(os.urandom(100_000))
    os.setxattr(source / "a/b/file", "user.x", b"\0y")
    os.link(source / "a/b/file", source / "a/second")
    (source / "a/link").symlink_to("/" + "l" * 90)
    os.chown(source / "a/b/file", 70_000, 80_000)
    if "v7" not in options[0]:
        os.mkfifo(source / "fifo")
        os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    if "ustar" not in options[0] and "v7" not in options[0]:
        (source / ("n" * 200)).write_bytes(b"long")
        (source / "to-long").symlink_to("t" * 150)
    with open(source / "sparse", "wb") as file:
        for island in range(40):  # more than one header of the old form holds
            file.seek(island * 65536)
            file.write(b"island")
        file.truncate(1 << 22)
    raw = peers.run("tar", "-C", str(source), *options, "-cf", "-", ".")
    peers.run("tar", "-C", str(theirs), "--xattrs", "--xattrs-include=*", "-xpf", "-", input=raw)
    store = LayerStore(str(tmp_path / "layers"))
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    store.apply(diff_id, [raw[start : start + 9999] for start in range(0, len(raw), 9999)])
    ours = trees.look(store.path(diff_id))
    assert ours == trees.look(theirs)
    if "--sparse" in options:
        assert Path(store.path(diff_id), "sparse").stat().st_blocks * 512 < 1 << 20


def test_what_was_made_to_mount_on_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "lower/etc").mkdir(parents=True)
    top = SnapshotStore(str(tmp_path / "tops")).create("one", [str(tmp_path / "lower")])
    mounted = top.mount()
    made = f"/proc/self/fd/{mounted}"
    for name in ("etc/hosts", "data/sub/file", "own/file"):
        os.makedirs(os.path.dirname(f"{made}/{name}"), exist_ok=True)
        Path(made, name).touch()
    Path(made, "data/written").touch()
    os.close(mounted)
    points = ("/etc/hosts", "/data/sub/file", "/proc", "/own")
    assert top.changes(points) == [("A", "/data"), ("A", "/data/written"), ("A", "/own"), ("A", "/own/file")]
    raw = b"".join(top.pack(points))
    assert [member.name for member in Reader([raw])] == [b"data", b"data/written", b"own", b"own/file"]


@pytest.mark.peer
def test_a_top_packed_as_a_layer_makes_the_same_change(layered_image: Layout, tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    lowers = trees.apply(store, layered_image)
    top = SnapshotStore(str(tmp_path / "tops")).create("one", lowers)
    mounted = top.mount()
    root = f"/proc/{os.getpid()}/fd/{mounted}"
    peers.run("rm", "-r", f"{root}/work/old", f"{root}/work/keep", f"{root}/home")
    for name in ("work/old", "new/deep"):
        os.makedirs(f"{root}/{name}")
    Path(root, "work/old/fresh").write_text("new")
    os.link(f"{root}/work/old/fresh", f"{root}/new/deep/same")
    os.chmod(f"{root}/etc/passwd", 0o600)
    with open(f"{root}/etc/group", "r+"):
        pass  # copied up, not changed
    os.setxattr(f"{root}/work/owned", "user.more", b"1")
    changed = trees.look(root)
    told = top.changes()
    raw = b"".join(top.pack())
    os.close(mounted)
    assert told == sorted(told, key=lambda change: change[1])
    assert told == [
        ("C", "/etc"),
        ("C", "/etc/passwd"),
        ("D", "/home"),
        ("A", "/new"),
        ("A", "/new/deep"),
        ("A", "/new/deep/same"),
        ("C", "/work"),
        ("D", "/work/keep"),
        ("C", "/work/old"),
        ("D", "/work/old/c"),
        ("A", "/work/old/fresh"),
        ("C", "/work/owned"),
    ]
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    store.apply(diff_id, [raw])
    store.adopt([*reversed([f"sha256:{path.split('/')[-2]}" for path in lowers]), diff_id])
    again = overlay.mount([store.path(diff_id), *lowers])
    try:
        shown = trees.look(f"/proc/self/fd/{again}")
        del shown["."], changed["."]  # its time is the top's own
        assert shown == changed
    finally:
        os.close(again)


APPLY = """
import hashlib, sys
from mamushka.storage.layers import LayerStore
raw = open(sys.argv[2], "rb").read()
diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
print(LayerStore(sys.argv[1]).apply(diff_id, (raw[i:i + 4096] for i in range(0, len(raw), 4096))).entries)
"""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for number in range(400):
        (source / f"d{number % 20}").mkdir(parents=True, exist_ok=True)
        (source / f"d{number % 20}/f{number}").write_bytes(bytes([number % 256]) * number * 10)
    archive = tmp_path / "big.tar"
    peers.run("tar", "-C", str(source), "--format=posix", "-cf", str(archive), ".")
    return archive


def test_killed_at_any_point_the_next_one_succeeds_and_nothing_is_left(big: Path, tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    diff_id = "sha256:" + hashlib.sha256(big.read_bytes()).hexdigest()
    killed = 0
    for step in range(12):
        process = subprocess.Popen([sys.executable, "-c", APPLY, store.root, str(big)], stdout=subprocess.DEVNULL)
        staging = Path(store.root, "staging", diff_id[7:])
        while process.poll() is None and not staging.exists():
            time.sleep(0.001)
        time.sleep(step * 0.004)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if store.has(diff_id):
            assert len(trees.look(store.path(diff_id))) == 421
            store.remove(diff_id)
    assert killed > 0
    if killed % 2:
        store.clean()
        assert os.listdir(f"{store.root}/staging") == []
    raw = big.read_bytes()
    store.apply(diff_id, [raw])
    assert trees.look(store.path(diff_id)) == trees.look(tmp_path / "source")
    assert os.listdir(f"{store.root}/staging") == []


def test_several_processes_apply_one_layer_once(big: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPLY, str(tmp_path / "layers"), str(big)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == [b"421\n"] * 4
    assert os.listdir(tmp_path / "layers/staging") == []


def test_no_space_left_leaves_nothing(big: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    peers.run("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small))
    try:
        store = LayerStore(str(small))
        raw = big.read_bytes()
        with pytest.raises(OSError, match="No space left"):
            store.apply("sha256:" + hashlib.sha256(raw).hexdigest(), [raw])
        assert os.listdir(small / "staging") == []
        with pytest.raises(Invalid):
            store.apply("sha256:" + "0" * 64, [bytes(1024)])
    finally:
        peers.run("umount", str(small))
