"""What all machines of a host have in common, and who is asked for it when."""

from __future__ import annotations

from pathlib import Path

import pytest

from mamushka.engine import machines
from mamushka.engine.machine_configuration import Configuration, read
from mamushka.errors import Invalid, NotFound


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MAMUSHKA_KERNEL", raising=False)
    (tmp_path / "mamushka").mkdir()
    return tmp_path / "mamushka" / "machines.json"


def test_the_users_file_is_read_and_the_environment_goes_before_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('{"kernel": "/k", "cpus": 2, "memory": 1073741824}')
    assert read() == Configuration("/k", 2, 1 << 30)
    monkeypatch.setenv("MAMUSHKA_KERNEL", "/other")
    assert read() == Configuration("/other", 2, 1 << 30)
    assert read({"XDG_CONFIG_HOME": str(file.parent.parent)}) == Configuration("/k", 2, 1 << 30)


@pytest.mark.parametrize("text", ["[]", '{"kernle": "/k"}', '{"cpus": "2"}', "{", '{"memory": null}', '{"cpus": true}'])
def test_what_cannot_be_understood_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Invalid, match=r"machines\.json"):
        read()


def test_a_broken_file_keeps_nobody_from_removing_a_machine(file: Path, tmp_path: Path) -> None:
    file.write_text("{")
    wall = machines.open_machines(str(tmp_path / "state"))
    wall.delete("gone", force=True)
    with pytest.raises(NotFound):
        wall.state("gone")


def test_a_process_of_a_guest_is_told_by_its_own_words() -> None:
    stat = "12 (a) b) S 7 12 12 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 5 0 0"
    item = {"pid": 12, "inner": 3, "uid": 5, "stat": stat, "command": "sh\0-c\0x"}
    assert machines._process(item, {12: 3, 7: 1}) == machines.Process(3, 1, 5, 2.0, "sh -c x")
    assert machines._process({**item, "command": ""}, {}) == machines.Process(3, 0, 5, 2.0, "[a) b]")
    assert machines._process({**item, "stat": "lies"}, {}).cpu == 0.0
