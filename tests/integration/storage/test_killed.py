"""SIGKILL while volumes are filled and tops deleted: the next one repairs what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamushka.storage.snapshot import SnapshotStore
from mamushka.storage.volume import VolumeStore
from tests.integration.storage import trees

POPULATE = """
import os, sys
from mamushka.storage.volume import VolumeStore
store = VolumeStore(sys.argv[1])
store.create("v")
print("ready", flush=True)
store.populate("v", os.open(sys.argv[2], os.O_RDONLY))
"""
REMOVE = """
import sys
from mamushka.storage.snapshot import SnapshotStore
print("ready", flush=True)
SnapshotStore(sys.argv[1]).remove("one")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(300):
        directory = tmp_path / f"source/d{number % 10}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(bytes(number))
    return tmp_path / "source"


def killed(program: str, *arguments: str, after: float) -> bool:
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(after)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_a_volume_is_filled_whole_or_not_at_all(source: Path, tmp_path: Path) -> None:
    store = VolumeStore(str(tmp_path / "volumes"))
    expected = trees.look(source)
    seen = 0
    for step in range(10):
        seen += killed(POPULATE, store.root, str(source), after=step * 0.005)
        assert trees.look(store.get("v").path).keys() in ({"."}, expected.keys())
        if step % 2:
            store.clean()
            assert sorted(os.listdir(f"{store.root}/v")) in (
                ["data", "fresh", "volume.json"],
                ["data", "fresh", "lock", "volume.json"],
                ["data", "lock", "volume.json"],
            )
        if not os.path.exists(f"{store.root}/v/fresh"):
            store.remove("v")
    assert seen > 0
    store.create("v")
    fd = os.open(source, os.O_RDONLY)
    store.populate("v", fd)
    os.close(fd)
    assert trees.look(store.get("v").path) == expected


def test_a_top_that_is_half_deleted_is_gone_and_cleaned(source: Path, tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path / "tops"))
    for step in range(6):
        top = store.create("one", [str(source)])
        os.rename(source, f"{top.upper}/filled")
        killed(REMOVE, store.root, after=step * 0.002)
        gone = store.ids() == []
        store.clean(set())
        assert os.listdir(store.root) == []
        assert gone or step == 0
        for number in range(300):
            (source / f"d{number % 10}").mkdir(parents=True, exist_ok=True)
            (source / f"d{number % 10}/f{number}").touch()
