"""The tree of a machine's files: what is in it, what cannot be written, and that the host sees nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.errors import NotFound
from mamushka.linux.mount import MS_BIND, mount
from mamushka.machine import shares
from mamushka.runtime import Bundle
from mamushka.spec.runtime import Config, Mount, Root
from tests import peers


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


def apart(act: Callable[[], None]) -> int:
    """Do something in a child, which leaves the mount namespace; zero where nothing was raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def bundle(path: Path, *mounts: Mount) -> Bundle:
    (path / "rootfs").mkdir(exist_ok=True)
    (path / "rootfs" / "file").write_text("of the root")
    return Bundle(str(path), Config("1.2.0", root=Root("rootfs"), mounts=mounts))


def test_root_and_binds_are_where_the_guest_looks_for_them(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "content").write_text("of the volume")
    (tmp_path / "hosts").write_text("of the host")
    place = tmp_path / "record"
    place.mkdir()
    given = bundle(
        tmp_path,
        Mount("/proc", "proc", "proc"),
        Mount("/data", "bind", "volume", ("rbind", "rw")),
        Mount("/etc/hosts", "bind", str(tmp_path / "hosts"), ("bind", "ro")),
    )

    def look() -> None:
        tree, root, sources = shares.tree(str(place), given, -1)
        assert root == f"{shares.INSIDE}/root"
        assert sources == {"/data": f"{shares.INSIDE}/mounts/0", "/etc/hosts": f"{shares.INSIDE}/mounts/1"}
        os.fchdir(tree)
        assert Path("root/file").read_text() == "of the root"
        assert Path("mounts/0/content").read_text() == "of the volume"
        assert Path("mounts/1").read_text() == "of the host"
        Path("mounts/0/made").write_text("x")
        Path("root/made").write_text("x")
        with pytest.raises(OSError, match="Read-only"):
            Path("mounts/1").write_text("x")

    assert apart(look) == 0
    assert (tmp_path / "volume" / "made").exists() and (tmp_path / "rootfs" / "made").exists()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("option", "below"), [("ro", True), ("rro", False)])
def test_what_lies_below_is_read_only_where_that_was_asked_for(tmp_path: Path, option: str, below: bool) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    place = tmp_path / "record"
    place.mkdir()
    given = bundle(tmp_path, Mount("/x", "bind", str(tmp_path / "outer"), ("rbind", option)))

    def look() -> None:
        from mamushka.linux.process import CLONE_NEWNS, unshare

        unshare(CLONE_NEWNS)
        mount(os.fsencode(tmp_path / "other"), os.fsencode(tmp_path / "outer" / "inner"), None, MS_BIND, None)
        tree, _, _ = shares.tree(str(place), given, -1)
        os.fchdir(tree)
        with pytest.raises(OSError, match="Read-only"):
            Path("mounts/0/made").write_text("x")
        if below:
            Path("mounts/0/inner/made").write_text("x")
        else:
            with pytest.raises(OSError, match="Read-only"):
                Path("mounts/0/inner/made").write_text("x")

    assert apart(look) == 0


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    place = tmp_path / "record"
    place.mkdir()

    def look() -> None:
        with pytest.raises(NotFound, match="/nowhere at /x"):
            shares.tree(str(place), bundle(tmp_path, Mount("/x", "bind", "/nowhere", ("bind",))), -1)

    assert apart(look) == 0
