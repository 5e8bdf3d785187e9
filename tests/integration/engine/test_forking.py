"""Workloads that go on from where another one stands: containers, by criu. Machines: machine/test_snapshots.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import mamushka as mamushka_api
from mamushka.engine.engine import Engine
from mamushka.engine.forking import LABEL
from mamushka.engine.settings import Port, Settings
from mamushka.engine.staging import Staging
from mamushka.errors import Conflict, Invalid, MamushkaError, NotFound
from tests import host
from tests.integration.engine.counting import counting, numbers

pytestmark = [pytest.mark.root, pytest.mark.lab]


def test_forks_of_a_container_go_on_beside_it(engine: Engine, criu: None) -> None:
    id = counting(engine, name="first", ports=(Port(80, host_port=7071),))
    numbers(engine, id, 3)
    ids = engine.fork(id, 2, names=("left", "right"))
    assert [engine.inspect(each).name for each in ids] == ["left", "right"]
    for each in ids:
        seen = engine.inspect(each)
        assert seen.status == "running" and seen.settings.labels[LABEL] == id
        assert seen.settings.ports[0].host_port == 0
        found = numbers(engine, each, 2)
        assert found[0] >= 3 and found == list(range(found[0], found[0] + len(found)))
    before = numbers(engine, id, 1)
    numbers(engine, id, len(before) + 2)
    # Each has its own files.
    assert engine.exec(ids[0], ["sh", "-c", "echo mine > /root/mine"]).wait(30).status == 0
    assert engine.exec(ids[1], ["cat", "/root/mine"]).wait(30).status == 1
    for each in (id, *ids):
        engine.remove(each, force=True)
    assert not os.path.exists(engine.paths.staged)


def test_a_snapshot_outlives_what_it_was_made_of(engine: Engine, criu: None, tmp_path: Path) -> None:
    box = mamushka_api.get(counting(engine, name="first"), engine=engine)
    numbers(engine, box.id, 3)
    snapshot = box.snapshot(directory=str(tmp_path))
    assert box.snapshot().name == "snapshot1" and box.snapshot().name == "snapshot2"
    box.remove()
    with snapshot:
        for child in (snapshot.start(name="second"), snapshot.start()):
            with child:
                assert numbers(engine, child.id, 1)[0] >= 3
    assert os.listdir(tmp_path) == []
    assert engine.workloads(all=True) == []


def test_what_makes_no_sense_is_refused_and_leaves_nothing(engine: Engine) -> None:
    id = counting(engine)
    with pytest.raises(Invalid, match="0 further workloads"):
        engine.fork(id, 0)
    with pytest.raises(Invalid, match="1 names for 2 workloads"):
        engine.fork(id, 2, names=("one",))
    with pytest.raises(Invalid, match="invalid container name"):
        engine.fork(id, 2, names=("good", "../bad"))
    with pytest.raises(Invalid, match="invalid checkpoint name") as told:
        engine.snapshot(id, "a" * 201)
    assert "at most 200" in told.value.hint
    with pytest.raises(Invalid, match="cannot keep checkpoints in /proc/none: ") as told:
        engine.snapshot(id, directory="/proc/none")
    assert told.value.hint
    with pytest.raises(NotFound):
        engine.fork("nobody")
    assert len(engine.workloads(all=True)) == 1 and engine.inspect(id).status == "running"
    engine.kill(id)
    engine.wait(id)
    with pytest.raises(Conflict, match="not running"):
        engine.fork(id)
    engine.remove(id)


def test_what_a_killed_one_has_left_is_taken_away(engine: Engine) -> None:
    kept = engine.create(Settings(image="host", command=("true",)))
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            other = Engine(engine.paths.data, engine.paths.run)
            with Staging(other) as staging:
                for _ in range(2):
                    staging.made(other.create(Settings(image="host", command=("true",))))
                Path(staging.path, "memory").write_bytes(b"secret")
                os.write(tell, b"made")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(told, 4) == b"made"
    assert len(engine.workloads(all=True)) == 3, "he lives: it is his"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [each.id for each in engine.workloads(all=True)] == [kept]
    assert not os.path.exists(engine.paths.staged)
    assert os.listdir(engine.paths.workloads) and engine.snapshots.ids() == [kept]


def test_where_criu_cannot_the_reason_is_told_and_it_runs_on(engine: Engine) -> None:
    if not host.lacks_criu():
        pytest.skip("criu works here")
    id = counting(engine)
    with pytest.raises(MamushkaError):
        engine.fork(id, 2)
    assert len(engine.workloads(all=True)) == 1
    assert not os.path.exists(engine.paths.staged)
    before = numbers(engine, id, 1)
    numbers(engine, id, len(before) + 2)
    engine.remove(id, force=True)
