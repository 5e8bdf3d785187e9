"""What a peer's late programs mount is taken down too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import peers

pytestmark = pytest.mark.root
LATE = 'sleep 0.4; mkdir -p "$0/s/deep" && mount --bind "$0/s" "$0/s" && mount --bind "$0/s/deep" "$0/s/deep"'


def test_who_mounts_late_is_waited_for(tmp_path: Path) -> None:
    peers.need_root()
    beside = tmp_path.with_name(tmp_path.name + "0")
    with (
        subprocess.Popen(["sh", "-c", LATE, str(tmp_path)]) as late,
        subprocess.Popen(["sleep", "100", str(beside)]) as other,  # which has another place
    ):
        try:
            peers.leave(tmp_path)
        finally:
            other.kill()
        assert late.wait(0) == 0
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]


def test_who_does_not_end_is_named(tmp_path: Path) -> None:
    peers.need_root()
    (tmp_path / "s").mkdir()
    peers.run("mount", "--bind", str(tmp_path / "s"), str(tmp_path / "s"))
    with (
        subprocess.Popen(["sh", "-c", "read x", f"{tmp_path}/s"], stdin=subprocess.PIPE) as process,
        pytest.raises(AssertionError, match=f"{process.pid} sh -c read x"),
    ):
        peers.leave(tmp_path, patience=0.2)
    assert not os.path.ismount(tmp_path / "s")
