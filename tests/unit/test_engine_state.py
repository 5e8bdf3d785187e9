"""The engine's database: names, prefixes, transactions, many processes, damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from mamushka.engine.paths import Paths, read_json, write_json
from mamushka.engine.state import EVENTS_MAX, Row, State
from mamushka.errors import Conflict, NotFound
from mamushka.linux import lock


def _row(number: int, name: str = "") -> Row:
    return Row(f"{number:064x}", name or f"box{number}", "created", float(number), "{}", "{}")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state.db"))


def test_finding(state: State) -> None:
    state.insert(_row(0xAB << 248))
    state.insert(_row(0xAC << 248, "deadbeef"))
    state.insert(_row(0xDEADBEEF << 224))
    assert state.find("ab").name.startswith("box")
    assert state.find("/deadbeef").id.startswith("ac")  # a name goes before a prefix
    assert state.find(f"{0xDEADBEEF << 224:064x}").id.startswith("deadbeef")
    with pytest.raises(Conflict, match="ambiguous"):
        state.find("a")
    for unknown in ("ff", "nobody", "", "*"):
        with pytest.raises(NotFound):
            state.find(unknown)


def test_a_name_is_taken_once(state: State) -> None:
    state.insert(_row(1, "box"))
    with pytest.raises(Conflict, match="already in use"):
        state.insert(_row(2, "box"))
    assert state.delete(_row(1).id) and not state.delete(_row(1).id)
    state.insert(_row(2, "box"))


def test_a_transaction_happens_or_not(state: State) -> None:
    with pytest.raises(RuntimeError), state.transaction():
        state.insert(_row(1))
        with state.transaction():
            state.insert(_row(2))
        raise RuntimeError
    assert state.rows() == []
    with state.transaction():
        state.insert(_row(1))
    assert [row.name for row in state.rows("created")] == ["box1"]
    assert state.rows("running") == []


def test_many_processes_write_at_once(state: State) -> None:
    state.open()
    state.close()
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            own = State(state.path)
            for number in range(25):
                with own.transaction():
                    own.insert(_row(1 + child * 25 + number))
                    own.add_event(0.0, "workload", "create", "x", {})
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(state.rows()) == 100


def test_a_process_killed_in_a_transaction_leaves_nothing(state: State) -> None:
    state.insert(_row(1))
    state.close()
    pid = os.fork()
    if pid == 0:
        own = State(state.path)
        with own.transaction():
            own.insert(_row(2))
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert [row.name for row in state.rows()] == ["box1"]
    state.insert(_row(2))


@pytest.mark.parametrize("damage", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_database_is_rebuilt(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(damage)
    state = State(str(path), lambda empty: empty.insert(_row(7)))
    assert [row.name for row in state.rows()] == ["box7"]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("pragma user_version=99")
    connection.close()
    with pytest.raises(Conflict, match="newer mamushka"):
        State(str(tmp_path / "state.db")).rows()


def test_events_are_bounded(state: State) -> None:
    with state.transaction():
        for number in range(EVENTS_MAX + 600):
            state.add_event(float(number), "image", "pull", "x", {})
    (count, last) = state.execute("select count(*), max(time) from events").fetchone()
    assert EVENTS_MAX <= count < EVENTS_MAX + 256 and last == EVENTS_MAX + 599


def test_documents_are_replaced_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    assert read_json(path) is None
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2} and os.listdir(tmp_path) == ["a.json"]


def test_roots_are_made_for_root_alone(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "data"), str(tmp_path / "run"))
    paths.make()
    paths.make()
    assert os.stat(paths.workloads).st_mode & 0o777 == 0o700


def test_a_lock_tells_whether_it_is_held(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert not lock.held(second) and lock.take(first) and lock.held(second) and not lock.take(second)
    assert not lock.held(second, byte=1) and lock.take(second, byte=1) and lock.held(first, byte=1)
    pid = os.fork()
    if pid == 0:
        os.close(first)  # the parent's copy keeps it
        os._exit(0)
    os.waitpid(pid, 0)
    assert lock.held(second)
    os.close(first)
    assert not lock.held(second) and lock.take(second, shared=True)
    os.close(second)
