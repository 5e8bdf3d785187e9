"""Processes die at any instant; the next command finds out, says so, and repairs."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mamushka.engine import shim
from mamushka.engine.engine import Engine
from mamushka.engine.settings import Restart
from mamushka.errors import Conflict
from mamushka.runtime import Exit
from tests.integration.engine.test_workloads import COUNT, output, settings, shim_of

pytestmark = pytest.mark.root


def until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def name_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def private_memory(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        rows = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
    return int(rows["Pss"].split()[0]) * 1024


def test_an_idle_shim_sleeps_in_a_page_and_wakes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "IDLE_MIN", 0.1)  # the forked shim inherits it
    id = engine.create(settings("sh", "-c", "echo first; read x; echo $x; read x; exit 6", stdin=True))
    engine.start(id)
    pid = shim_of(engine, id)
    until(lambda: b"python" not in name_of(pid) and private_memory(pid) < 64 << 10)
    with engine.attach(id) as attached:
        attached.write(b"second\n")
        assert attached.read() == (1, b"second\n")
        assert shim_of(engine, id) == pid
        attached.write(b"\n")
        assert attached.wait(20) == Exit(code=6)
    assert [line.data for line in engine.logs(id)] == [b"first\n", b"second\n"]
    assert engine.inspect(id).exit == Exit(code=6)


def test_a_sleeping_shim_restarts_its_workload(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "IDLE_MIN", 0.1)
    id = engine.create(settings("sleep", "100", restart=Restart("always")))
    engine.start(id)
    first, pid = engine.inspect(id).pid, shim_of(engine, id)
    until(lambda: b"python" not in name_of(pid))
    os.kill(first, signal.SIGKILL)
    until(lambda: engine.inspect(id).pid not in (0, first))
    assert engine.inspect(id).restarts == 1 and shim_of(engine, id) == pid
    engine.stop(id, timeout=0)
    assert engine.inspect(id).status == "exited"


def test_a_killed_shim_leaves_its_workload_alive(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", COUNT))
    engine.start(id)
    os.kill(shim_of(engine, id), signal.SIGKILL)
    time.sleep(0.3)
    seen = engine.inspect(id)
    assert seen.status == "running" and os.path.exists(f"/proc/{seen.pid}")
    with engine.exec(id, ["echo", "reached"]) as process:
        assert output(process) == b"reached\n"
    for refused in (engine.start, engine.attach):
        with pytest.raises(Conflict, match="shim"):
            refused(id)
    engine.stop(id, timeout=0.1)
    seen = engine.inspect(id)
    assert seen.status == "exited" and seen.exit == Exit(code=255) and "not known" in seen.error
    engine.start(id)
    assert engine.inspect(id).status == "running"


def test_a_lost_database_is_rebuilt_from_the_directories(engine: Engine, roots: tuple[str, str]) -> None:
    running = engine.create(settings("sleep", "100", name="running"))
    ended = engine.create(settings("sh", "-c", "exit 4", name="ended"))
    engine.create(settings("true", name="fresh"))
    engine.start(running)
    engine.start(ended)
    engine.wait(ended, timeout=20)
    before = {item.name: item for item in engine.workloads(all=True)}
    engine.state.close()
    for name in os.listdir(roots[0]):
        if name.startswith("state.db"):
            os.unlink(f"{roots[0]}/{name}")
    after = {item.name: item for item in engine.workloads(all=True)}
    assert {name: (item.status, item.exit, item.pid) for name, item in after.items()} == {
        name: (item.status, item.exit, item.pid) for name, item in before.items()
    }
    assert after["running"].settings == before["running"].settings
    engine.stop("running", timeout=0)
    assert engine.inspect("running").exit == Exit(signal=9)


def test_a_starter_killed_half_way(engine: Engine, roots: tuple[str, str]) -> None:
    """A row that says starting, and nobody who holds the lock."""
    id = engine.create(settings("sleep", "100"))
    engine.state.change(id, status="starting")
    assert engine.inspect(id).status == "created"
    engine.state.change(id, status="removing")
    assert engine.workloads(all=True) == []
    assert os.listdir(f"{roots[0]}/workloads") == []


def test_a_reboot(engine: Engine, roots: tuple[str, str]) -> None:
    """The run root is gone, and with it every process."""
    id = engine.create(settings("sleep", "100"))
    engine.start(id)
    pid, holder = engine.inspect(id).pid, shim_of(engine, id)
    os.kill(holder, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    seen = engine.inspect(id)
    assert seen.status == "exited" and seen.exit == Exit(code=255)
    engine.start(id)
    assert engine.inspect(id).status == "running"


def test_many_start_the_same_one(engine: Engine, roots: tuple[str, str]) -> None:
    id = engine.create(settings("sleep", "100"))
    engine.state.close()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            with Engine(*roots) as own:
                own.start(id)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert engine.inspect(id).status == "running" and len(engine.processes(id)) == 1
