"""Several processes do everything to one workload at once: each call works or says why not, and nothing is left."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from mamushka.engine.engine import Engine
from mamushka.engine.rootfs import open_root
from mamushka.errors import Conflict, MamushkaError, NotFound, Unavailable
from mamushka.record import Record
from tests.integration.engine.test_workloads import settings

pytestmark = [pytest.mark.root, pytest.mark.slow]
SECONDS = 6.0
VERBS = ("create", "start", "stop", "kill", "remove", "inspect", "exec", "list", "rename", "update")


def _do(engine: Engine, verb: str, dice: random.Random) -> None:
    if verb == "create":
        engine.create(settings("sleep", "3", name="box", remove=dice.random() < 0.3))
    elif verb == "start":
        engine.start("box")
    elif verb == "stop":
        engine.stop("box", timeout=0)
    elif verb == "remove":
        engine.remove("box", force=dice.random() < 0.5)
    elif verb == "exec":
        with engine.exec("box", ["true"]) as process:
            process.wait(20)
    elif verb == "list":
        engine.workloads(all=True)
    elif verb == "rename":
        engine.rename("box", "box")
    else:
        getattr(engine, verb)("box")


def _caller(roots: tuple[str, str], seed: int) -> int:
    dice, end, strange = random.Random(seed), time.monotonic() + SECONDS, 0
    with Engine(*roots) as engine:
        while time.monotonic() < end:
            verb = dice.choice(VERBS)
            try:
                _do(engine, verb, dice)
            except (Conflict, NotFound, Unavailable):
                pass
            except MamushkaError as error:  # an exec that meets the very end of its workload
                strange += verb != "exec"
                print(verb, error, file=sys.stderr)
            except Exception as error:
                strange += 1
                print(verb, repr(error), file=sys.stderr)
    return strange


def test_everything_at_once(engine: Engine, roots: tuple[str, str]) -> None:
    children = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(min(_caller(roots, seed), 100))
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    for workload in engine.workloads(all=True):
        engine.remove(workload.id, force=True)
    data, state = roots
    places = (f"{data}/workloads", f"{data}/news", f"{state}/containers", f"{state}/shims")
    deadline = time.monotonic() + 10
    while any(map(os.listdir, places)) and time.monotonic() < deadline:
        time.sleep(0.05)
        engine.workloads(all=True)  # a shim may have told its last news just now: whoever comes next takes them
    assert [name for place in places for name in os.listdir(place)] == []


def test_a_pid_that_is_another_processes_by_now_gives_no_root(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workload ended, and its number went to a process of the host's, between the question and the look."""
    id = engine.create(settings("sleep", "60", name="box"))
    engine.start(id)
    answers = [os.getpid(), 0]
    monkeypatch.setattr(Record, "living", lambda _: answers.pop(0))
    root = open_root(engine, engine.inspect(id))
    assert not answers, "it was asked before the look, and after it"
    monkeypatch.undo()
    try:
        assert not os.path.samestat(os.fstat(root), os.stat("/"))
    finally:
        os.close(root)
        engine.remove(id, force=True)


def test_many_make_the_state_at_once(tmp_path: Path) -> None:
    """SQLite waits for a lock, but not where two turn a new file into one with a write-ahead log."""
    for turn in range(12):
        children = []
        begin = time.monotonic() + 0.03
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                try:
                    while time.monotonic() < begin:
                        pass
                    with Engine(f"{tmp_path}/{turn}", f"{tmp_path}/{turn}.run") as engine:
                        engine.workloads(all=True)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
