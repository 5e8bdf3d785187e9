"""Where a path of a machine's leads on the host: its root, what is mounted over that, and what cannot be reached."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.engine import rootfs
from mamushka.engine.engine import Engine
from mamushka.engine.settings import Attachment, Mount, Settings
from mamushka.errors import Unsupported
from mamushka.values import replace

pytestmark = pytest.mark.root


def test_what_is_mounted_over_the_root_is_reached_where_it_lies(engine: Engine, tmp_path: Path) -> None:
    for name in ("root", "directory"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    made = engine.create(
        Settings(
            image=str(tmp_path / "root"),
            rootfs=True,
            command=("x",),
            networks=(Attachment("none"),),
            mounts=(
                Mount("bind", "/volume", str(tmp_path / "directory")),
                Mount("bind", "/etc/own", str(tmp_path / "file")),
                Mount("volume", "/volume/deeper", "named"),
                Mount("tmpfs", "/scratch"),
            ),
        )
    )
    workload = replace(engine.inspect(made), runtime="vm", status="running")
    named = engine.volumes.get("named").path

    def reached(path: str) -> tuple[str, str]:
        fd, below = rootfs.reach(engine, workload, path)
        try:
            return os.readlink(f"/proc/self/fd/{fd}"), below
        finally:
            os.close(fd)

    directory = str(tmp_path / "directory")
    for path in ("/volume", "/volume/", "volume", "//volume", "/x/../volume"):
        assert reached(path) == (directory, "/"), path
    assert reached("/volume/a/b") == (directory, "/a/b")
    assert reached("/volume/deeper/a") == (named, "/a")
    assert reached("/etc/own") == (str(tmp_path), "/file")
    assert reached("/volumes")[1] == "/volumes"  # not below it: the root's
    for path in ("/scratch/a", "/dev/shm/a", "/proc/1/root/etc/shadow"):
        with pytest.raises(Unsupported, match="cannot be reached from outside"):
            reached(path)
    engine.remove(made, volumes=True)
