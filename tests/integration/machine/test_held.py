"""A machine holds still for whoever saves it, and goes on whatever becomes of him; the guest is a double (local.py)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamushka.errors import Conflict, NotFound, Unsupported
from mamushka.machine.checkpoint import Held
from mamushka.machine.shape import OVERHEAD
from mamushka.runtime import CheckpointOptions, NotRunning
from mamushka.spec.runtime import Memory, Resources
from tests import peers
from tests.integration.machine.local import LocalMaker
from tests.integration.machine.test_runtime import Ground, status

TICKS = "while echo x; do sleep 0.01; done"
RUN_ON = CheckpointOptions(leave_running=True)


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


@pytest.fixture
def ground(tmp_path: Any) -> Iterator[Ground]:
    made = Ground(str(tmp_path / "state"), LocalMaker())
    yield made
    made.close()


def ticks(reader: int) -> bool:
    """Whether its program goes on: something comes that was not there before."""
    os.set_blocking(reader, False)
    end = time.monotonic() + 5
    try:
        while os.read(reader, 1 << 16):
            pass
    except BlockingIOError:
        pass
    while time.monotonic() < end:
        try:
            return bool(os.read(reader, 100))
        except BlockingIOError:
            time.sleep(0.02)
    return False


def stands(reader: int) -> bool:
    os.set_blocking(reader, False)
    for _ in range(100):
        try:
            os.read(reader, 1 << 16)
        except BlockingIOError:
            time.sleep(0.1)
            try:
                os.read(reader, 1 << 16)
            except BlockingIOError:
                return True
    return False


def test_it_is_written_and_runs_on_or_ends(ground: Ground, tmp_path: Path) -> None:
    started, reader = ground.run(TICKS)
    ground.runtime.checkpoint("box", str(tmp_path / "one"), RUN_ON)
    assert ticks(reader)
    made = tmp_path / "one"
    assert {item.name: item.read_bytes() for item in made.iterdir()} == {
        "machine.json": b"state", "memory": b"memory", "disk": b"disk",
    }  # fmt: skip
    assert {item.stat().st_mode & 0o777 for item in made.iterdir()} == {0o600}
    with pytest.raises(Conflict, match="has a saved machine already"):
        ground.runtime.checkpoint("box", str(made), RUN_ON)
    ground.runtime.checkpoint("box", str(tmp_path / "two"))
    assert status(started) == -signal.SIGKILL
    with pytest.raises(NotRunning):
        ground.runtime.checkpoint("box", str(tmp_path / "three"))
    with pytest.raises(NotFound):
        ground.runtime.checkpoint("nobody", str(tmp_path / "three"))


def test_it_holds_still_until_it_is_told_to_go_on(ground: Ground) -> None:
    _, reader = ground.run(TICKS)
    with ground.runtime.hold("box") as held:
        assert stands(reader)
        assert os.pread(held.memory, 100, 0) == b"memory"
        assert os.pread(held.disk, 100, 0) == b"disk"
        with pytest.raises(Conflict, match="just being saved"):
            ground.runtime.hold("box")
        with pytest.raises(Conflict, match="just being saved"):
            ground.runtime.pause("box")
        held.go_on()
        assert ticks(reader)
    with ground.runtime.hold("box"):
        assert stands(reader)
    assert ticks(reader), "whoever only hangs up lets it go on too"


def test_a_paused_one_stays_paused(ground: Ground, tmp_path: Path) -> None:
    _, reader = ground.run(TICKS)
    ground.runtime.pause("box")
    ground.runtime.checkpoint("box", str(tmp_path / "one"), RUN_ON)
    assert stands(reader)
    assert ground.runtime.state("box").status == "paused"
    ground.runtime.resume("box")
    assert ticks(reader)


def test_whoever_is_killed_in_the_middle_leaves_a_machine_that_goes_on(ground: Ground, tmp_path: Path) -> None:
    _, reader = ground.run(TICKS)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with ground.runtime.hold("box"):
                os.write(tell, b"held")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(told, 4) == b"held"
    assert stands(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert ticks(reader)
    # What he had written by then is nothing, and in nobody's way.
    (tmp_path / "one").mkdir()
    (tmp_path / "one/memory").write_bytes(b"half")
    (tmp_path / "one/.disk.unfinished").write_bytes(b"half of it, and more than there is")
    with pytest.raises(NotFound, match="no saved machine"):
        ground.runtime.restore("other", ground.bundle("true"), None, str(tmp_path / "one"))  # type: ignore[arg-type]
    ground.runtime.checkpoint("box", str(tmp_path / "one"), RUN_ON)
    assert sorted(os.listdir(tmp_path / "one")) == ["disk", "machine.json", "memory"]
    assert (tmp_path / "one/disk").read_bytes() == b"disk"


def test_one_that_cannot_be_saved_says_why_and_runs_on(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSAVED", "1")
    _, reader = ground.run(TICKS)
    with pytest.raises(Unsupported, match="cannot be saved"):
        ground.runtime.checkpoint("box", str(tmp_path / "one"))
    assert os.listdir(tmp_path / "one") == []
    assert ticks(reader)
    for options in (
        CheckpointOptions(pre_dump=True),
        CheckpointOptions(parent="x"),
        CheckpointOptions(page_server="x"),
    ):
        with pytest.raises(Unsupported, match="as a whole"):
            ground.runtime.checkpoint("box", str(tmp_path / "one"), options)


def test_a_limited_machine_has_room_for_what_it_shares(ground: Ground, tmp_path: Path) -> None:
    """Its memory of that moment is charged to it as long as others go on from it."""
    limit = 128 << 20
    ground.run("sleep 60", resources=Resources(memory=Memory(limit=limit)))
    assert ground.runtime.stats("box").memory_limit == limit + OVERHEAD
    with ground.runtime.hold("box") as held:
        held.go_on()
    most = ground.runtime.stats("box").memory_limit
    assert 2 * limit + OVERHEAD <= most <= 3 * limit + OVERHEAD
    ground.runtime.checkpoint("box", str(tmp_path / "one"), RUN_ON)
    assert ground.runtime.stats("box").memory_limit <= 3 * limit + OVERHEAD


def test_descriptors_are_given_back(ground: Ground, tmp_path: Path) -> None:
    started, _ = ground.run("sleep 60")

    def count(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    own, theirs = count(os.getpid()), count(started.pid)
    for turn in range(3):
        ground.runtime.checkpoint("box", str(tmp_path / f"{turn}"), RUN_ON)
        with ground.runtime.hold("box") as held:
            held.go_on()
    assert isinstance(held, Held) and held.memory == -1
    assert count(os.getpid()) == own
    # The double's own disks; and the monitor hears a moment later that a caller has gone.
    end = time.monotonic() + 10
    while count(started.pid) > theirs + 6:
        assert time.monotonic() < end
        time.sleep(0.05)
