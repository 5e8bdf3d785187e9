"""Volumes as the engine offers them: who uses them decides what may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.engine.volumes import Volumes
from mamushka.errors import Conflict, Invalid, NotFound, Unsupported


class House:
    """Volumes with users that a test decides on, and what was announced."""

    def __init__(self, root: Path) -> None:
        self.users: dict[str, list[str]] = {}
        self.heard: list[tuple[str, str]] = []
        self.volumes = Volumes(str(root / "volumes"), lambda: self.users, lambda *event: self.heard.append(event))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_created_once_and_announced_once(house: House) -> None:
    made = house.volumes.create("data", labels={"tier": "db"})
    assert house.volumes.create("data").created == made.created
    assert house.heard == [("create", "data")]
    assert house.volumes.get("data") == made and os.path.isdir(made.path)
    anonymous = house.volumes.create()
    assert anonymous.anonymous and len(anonymous.name) == 64


def test_not_removed_while_used(house: House) -> None:
    house.volumes.create("data")
    house.users["data"] = ["f" * 64]
    with pytest.raises(Conflict, match="f" * 12):
        house.volumes.remove("data", force=True)
    assert house.volumes.get("data").users == ("f" * 64,)
    house.users.clear()
    house.volumes.remove("data")
    with pytest.raises(NotFound):
        house.volumes.remove("data")
    house.volumes.remove("data", force=True)
    assert house.heard == [("create", "data"), ("destroy", "data")]


def test_prune_takes_the_anonymous_or_all_that_nobody_uses(house: House) -> None:
    for name in ("used", "named"):
        house.volumes.create(name)
    anonymous = house.volumes.create()
    Path(anonymous.path, "f").write_bytes(bytes(100))
    house.users["used"] = ["1"]
    assert house.volumes.prune() == ([anonymous.name], 100)
    assert house.volumes.prune(all=True, filters={"label": ["none"]}) == ([], 0)
    assert house.volumes.prune(all=True) == (["named"], 0)
    assert [volume.name for volume in house.volumes.volumes()] == ["used"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["db", "web"]),
        ({"name": ["e"]}, ["web"]),
        ({"name": ["e", "d"]}, ["db", "web"]),
        ({"label": ["a"]}, ["db", "web"]),
        ({"label": ["a=1"]}, ["db"]),
        ({"label": ["a", "b=2"]}, ["web"]),
        ({"label!": ["b"]}, ["db"]),
        ({"dangling": ["true"]}, ["web"]),
        ({"dangling": ["false"]}, ["db"]),
        ({"driver": ["local"], "name": ["db"]}, ["db"]),
        ({"driver": ["nfs"]}, []),
    ],
)
def test_filters(house: House, filters: dict[str, list[str]], names: list[str]) -> None:
    house.volumes.create("db", labels={"a": "1"})
    house.volumes.create("web", labels={"a": "2", "b": "2"})
    house.users["db"] = ["1"]
    assert [volume.name for volume in house.volumes.volumes(filters=filters)] == names


def test_unknown_filters_and_options_are_refused(house: House) -> None:
    with pytest.raises(Invalid, match="no filter"):
        house.volumes.create("x")
        house.volumes.volumes(filters={"size": ["1"]})
    with pytest.raises(Invalid, match="no option"):
        house.volumes.create("y", options={"size": "1"})
    for options in ({"type": "nfs", "device": ":/x"}, {"type": "none", "device": "/x"}, {"o": "bind", "device": "x"}):
        with pytest.raises(Unsupported):
            house.volumes.create("y", options=options)
    assert [volume.name for volume in house.volumes.volumes()] == ["x"]


def test_a_volume_can_stand_for_a_host_directory(house: House, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/kept").touch()
    made = house.volumes.create("v", options={"type": "none", "o": "bind", "device": str(tmp_path / "real")})
    assert made.path == str(tmp_path / "real")
    assert not house.volumes.populate("v")
    house.volumes.remove("v")
    assert (tmp_path / "real/kept").exists()


def test_the_first_mount_decides_what_is_in_it(house: House, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/f").write_text("from the image")
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    for name in ("copied", "bare"):
        house.volumes.create(name)
    assert house.volumes.populate("copied", fd)
    assert not house.volumes.populate("bare")
    assert not house.volumes.populate("bare", fd)
    os.close(fd)
    assert os.listdir(house.volumes.get("copied").path) == ["f"]
    assert os.listdir(house.volumes.get("bare").path) == []
