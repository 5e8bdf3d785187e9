"""The verbs that look at a workload that runs, or change it."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.integration.walls.conftest import Wall

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]


def test_inspect_and_ps_name_it_and_its_wall(wall: Wall, box: str) -> None:
    (document,) = json.loads(wall("inspect", box).stdout)
    assert document["Name"] == f"/{box}" and document["Runtime"]["Name"] == wall.name
    assert document["State"]["Running"] and document["State"]["Pid"] > 0
    assert document["Config"]["Hostname"] == "home" and "A=1" in document["Config"]["Env"]
    assert wall("ps", "--format", "{{.Names}} {{.Image}}").stdout.decode().split()[0] == box


def test_pause_stops_it_and_unpause_lets_it_go_on(wall: Wall) -> None:
    name = wall.begin("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
    wall.told(name, b"1\n")
    assert wall("pause", name).returncode == 0
    assert wall.show(name, "{{.State.Status}}") == "paused"
    before = wall("logs", name).stdout
    time.sleep(1)
    assert wall("logs", name).stdout == before
    assert wall.exec(name, "true").returncode != 0
    assert wall("unpause", name).returncode == 0
    time.sleep(1)
    after = wall("logs", name).stdout
    assert len(after) > len(before)
    numbers = [int(line) for line in after.split()]
    assert numbers == list(range(1, len(numbers) + 1)), "nothing was lost or said twice"
    assert wall("pause", name).returncode == 0
    assert wall("kill", name).returncode == 0
    assert wall("wait", name).stdout == b"137\n"


def test_top_and_stats(wall: Wall, box: str) -> None:
    assert b"sleep 100000" in wall("top", box).stdout
    (figures,) = map(json.loads, wall("stats", "--no-stream", "--format", "json", box).stdout.splitlines())
    assert figures["Name"] == box
    assert re.match(r"[\d.]+%$", figures["CPUPerc"])
    assert float(re.match(r"[\d.]+", figures["MemUsage"]).group()) > 0  # type: ignore[union-attr]
    assert int(figures["PIDs"]) >= 1


def test_copies_in_both_directions(wall: Wall, box: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"content")
    (source / "file").chmod(0o640)
    (source / "sub" / "deep").write_bytes(os.urandom(700_000))
    os.symlink("file", source / "link")
    copied = wall("cp", str(source), f"{box}:/root/there")
    assert copied.returncode == 0, copied.stderr.decode()
    seen = wall.exec(box, "sh", "-c", "cd /root/there; cat file; ls; readlink link; stat -c %a file").stdout
    assert seen == b"contentfile\nlink\nsub\nfile\n640\n"
    wall.exec(box, "sh", "-c", "echo inside > /root/there/new; mkdir /tmp/memory; echo volatile > /tmp/memory/file")
    assert wall("cp", f"{box}:/root/there", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "sub" / "deep").read_bytes() == (source / "sub" / "deep").read_bytes()
    assert (tmp_path / "back" / "new").read_text() == "inside\n"
    assert os.readlink(tmp_path / "back" / "link") == "file"
    assert wall("cp", f"{box}:/nowhere", str(tmp_path / "none")).returncode == 1


def test_rename(wall: Wall, box: str) -> None:
    assert wall("rename", box, "other").returncode == 0
    assert wall.exec("other", "hostname").stdout == b"home\n"
    assert wall("rename", "other", box).returncode == 0


def test_a_difference_to_the_image_is_shown(wall: Wall, box: str) -> None:
    wall.exec(box, "sh", "-c", "echo x > /root/new; sync")
    assert b"A /root/new\n" in wall("diff", box).stdout


def test_update(wall: Wall, box: str) -> None:
    done = wall("update", "--memory", "128m", "--memory-swap", "256m", box)
    assert done.returncode == 0, done.stderr.decode()
    assert wall.show(box, "{{.HostConfig.Memory}}") == str(128 << 20)
