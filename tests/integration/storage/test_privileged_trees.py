"""What only root can put into a tree: foreign owners, devices, immutable files; copied, packed and deleted."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mamushka.storage import tree
from mamushka.storage.copy import copy
from mamushka.storage.remove import remove
from tests import peers
from tests.integration.storage import trees

pytestmark = pytest.mark.root


@pytest.fixture
def privileged(tmp_path: Path) -> Path:
    peers.need_root()
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(b"x" * 5000)
    os.chown(source / "d/f", 123, 456)
    os.chmod(source / "d/f", 0o6711)
    os.setxattr(source / "d/f", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    os.setxattr(source / "d/f", "trusted.t", b"1")
    (source / "d/l").symlink_to("f")
    os.chown(source / "d/l", 7, 7, follow_symlinks=False)
    os.mknod(source / "null", 0o20604, os.makedev(1, 3))
    os.chown(source / "d", 9, 9)
    os.setxattr(source / "d", "user.d", b"2")
    return source


def test_copied(privileged: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    ends = [os.open(path, os.O_RDONLY) for path in (privileged, tmp_path / "target")]
    copy(*ends)
    for fd in ends:
        os.close(fd)
    assert trees.look(tmp_path / "target") == trees.look(privileged)


def test_packed_and_unpacked(privileged: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    ends = [os.open(path, os.O_RDONLY) for path in (privileged, tmp_path / "target")]
    tree.unpack(ends[1], "/", tree.pack(ends[0], "/", name="copy"))
    tree.unpack(ends[1], "/", tree.pack(ends[0], "/d/f"), owner=(0, 0))
    for fd in ends:
        os.close(fd)
    assert trees.look(tmp_path / "target/copy") == trees.look(privileged)
    assert (tmp_path / "target/f").stat().st_uid == 0


def test_immutable_files_are_removed(tmp_path: Path) -> None:
    peers.need_root()
    (tmp_path / "t/d").mkdir(parents=True)
    (tmp_path / "t/d/f").touch()
    try:
        peers.run("chattr", "+i", str(tmp_path / "t/d/f"), str(tmp_path / "t/d"))
    except AssertionError:
        pytest.skip("this file system knows no immutable flag")
    remove(tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_what_is_mounted_in_a_tree_is_not_removed(tmp_path: Path) -> None:
    peers.need_root()
    (tmp_path / "t/mounted").mkdir(parents=True)
    peers.run("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "t/mounted"))
    (tmp_path / "t/mounted/precious").touch()
    try:
        with pytest.raises(OSError, match="mounted"):
            remove(tmp_path / "t")
        assert (tmp_path / "t/mounted/precious").exists()
    finally:
        peers.run("umount", str(tmp_path / "t/mounted"))


def test_a_racing_process_leads_nobody_out(tmp_path: Path) -> None:
    peers.need_root()
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    (root / "real").mkdir(parents=True)
    (root / "swap").mkdir()
    stop = threading.Event()

    def race() -> None:
        while not stop.is_set():
            os.rename(root / "swap", root / "aside")
            os.symlink(outside, root / "swap")
            os.unlink(root / "swap")
            os.rename(root / "aside", root / "swap")

    thread = threading.Thread(target=race)
    before = trees.look(outside)
    fd = os.open(root, os.O_RDONLY)
    (root / "real/victim").write_text("replaced")
    archive = list(tree.pack(fd, "/real", name=""))
    thread.start()
    try:
        for _ in range(200):
            try:
                tree.unpack(fd, "/swap", archive)
                list(tree.pack(fd, "/swap"))
            except (OSError, Exception) as error:  # any answer will do, as long as nothing outside is touched
                assert "untouched" not in str(error)
    finally:
        stop.set()
        thread.join()
        os.close(fd)
    assert trees.look(outside) == before
