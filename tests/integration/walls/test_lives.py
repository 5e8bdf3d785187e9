"""The same from outside whichever life a workload has: fresh, gone on from a checkpoint, or made of another one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from tests import host
from tests.integration.walls.conftest import CONTAINER, MACHINE, Wall, eventually, make

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]
LAYERS = ("--annotation", "com.mamushka.machine.root=layers")
SCRIPT = (
    "trap 'echo told' USR1; trap 'echo ends; exit 9' TERM; echo begun >> /begun; n=0; "
    "while :; do n=$((n+1)); echo count $n; echo $n > /count; sleep 0.2; done"
)
FRESH, RESTORED, FORKED, SPAWNED = "fresh", "restored", "forked", "spawned"


@pytest.fixture(scope="module", params=[CONTAINER, MACHINE])
def wall(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox_reference: str
) -> Iterator[Wall]:
    """Each wall in turn, such that what is behind it can be saved."""
    if request.param == CONTAINER and (lacking := host.lacks_criu()):
        pytest.skip(lacking)
    for made in make(request.param, str(tmp_path_factory.mktemp("w")), busybox_reference):
        if made.is_machine:
            made.behind = (*made.behind, *LAYERS)
        yield made


@pytest.fixture(scope="module", params=[FRESH, RESTORED, FORKED, SPAWNED])
def alive(request: pytest.FixtureRequest, wall: Wall) -> Iterator[str]:
    """The name of a workload that counts, and lives that life."""
    first = wall.begin("-e", "A=1", "-i", "--", "sh", "-c", SCRIPT)
    wall.told(first, b"count 3")
    name = first
    if request.param == RESTORED:
        _do(wall, "container", "checkpoint", first)
        time.sleep(0.5)
        _do(wall, "container", "restore", first)
    elif request.param == FORKED:
        name = f"walls-{uuid.uuid4().hex[:8]}"
        _do(wall, "fork", "--name", name, first)
    elif request.param == SPAWNED:
        name = f"walls-{uuid.uuid4().hex[:8]}"
        _do(wall, "snapshot", first, "it")
        _do(wall, "rm", "-f", wall.begin("true"))  # something else happens meanwhile
        _do(wall, "fork", "--checkpoint", "it", "--name", name, first)
    yield name
    wall("rm", "-f", first, name)


def _do(wall: Wall, *words: str) -> None:
    done = wall(*words)
    assert done.returncode == 0, done.stderr.decode()


def counts(wall: Wall, name: str) -> list[int]:
    lines = wall("logs", name).stdout.decode().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("count ")]


def test_it_counts_on_without_a_hole(wall: Wall, alive: str) -> None:
    before = len(counts(wall, alive))
    eventually(lambda: len(counts(wall, alive)) >= before + 3, "it counts")
    found = counts(wall, alive)
    assert found == list(range(found[0], found[0] + len(found)))
    there = int(wall.exec(alive, "cat", "/count").stdout)
    assert abs(there - counts(wall, alive)[-1]) < 50
    assert wall.exec(alive, "cat", "/begun").stdout == b"begun\n", "it began once"


def test_further_processes_and_their_codes(wall: Wall, alive: str) -> None:
    assert wall.exec(alive, "sh", "-c", "echo out; echo err >&2; exit 7").returncode == 7
    done = wall.exec(alive, "-i", "--", "sh", "-c", "cat; echo $A", input=b"through\n" * 1000)
    assert done.stdout == b"through\n" * 1000 + b"1\n", done.stderr
    assert wall.exec(alive, "nonexistent").returncode == 127
    assert wall.exec(alive, "sh", "-c", "kill -TERM $$").returncode == 143
    assert b"cpu" in wall.exec(alive, "cat", "/proc/stat").stdout


def test_signals_reach_it(wall: Wall, alive: str) -> None:
    _do(wall, "kill", "-s", "USR1", alive)
    wall.told(alive, b"told")


def test_it_is_paused_and_goes_on(wall: Wall, alive: str) -> None:
    _do(wall, "pause", alive)
    time.sleep(0.5)
    before = len(counts(wall, alive))
    time.sleep(1)
    assert len(counts(wall, alive)) == before
    assert wall.show(alive, "{{.State.Status}}") == "paused"
    _do(wall, "unpause", alive)
    eventually(lambda: len(counts(wall, alive)) > before, "it goes on")


def test_the_end_is_the_programs(wall: Wall, alive: str) -> None:
    """The last of these: it ends, and is then started anew."""
    _do(wall, "stop", alive)
    assert wall("wait", alive).stdout == b"9\n"
    assert wall("logs", alive).stdout.splitlines()[-1] == b"ends"
    assert wall.show(alive, "{{.State.Status}} {{.State.ExitCode}}") == "exited 9"
    _do(wall, "start", alive)
    eventually(lambda: wall.exec(alive, "cat", "/begun").stdout == b"begun\nbegun\n", "it began anew, on its own disk")
    _do(wall, "kill", alive)
    assert wall("wait", alive).stdout == b"137\n"
