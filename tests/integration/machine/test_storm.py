"""Many machines at once, and SIGKILL for whoever it meets: creators, monitors, relays. Nothing of them stays."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from mamushka.container.cgroups import cgroup as cgroups
from mamushka.errors import MamushkaError
from mamushka.machine.runtime import MachineRuntime
from mamushka.record import alive, start_time
from mamushka.runtime import Stdio
from tests import peers
from tests.integration.machine.local import LocalMaker
from tests.integration.machine.test_runtime import Ground

MACHINES = 60


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


def _create(state: str, number: int, report: int) -> int:
    """A creator: makes a machine, perhaps a further process in it, and waits for its end. Its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        ground = Ground(state, LocalMaker(lambda: time.sleep(random.random() / 20)))
        bundle = ground.bundle("sleep 60")
        null = os.open("/dev/null", os.O_RDWR)
        started = ground.runtime.run(f"box{number}", bundle, Stdio(null, null, null))
        os.write(report, b"%d %d\n" % (started.pid, start_time(started.pid)))
        if number % 2:
            process = bundle.config.process
            assert process is not None
            relay = ground.runtime.exec(f"box{number}", process, Stdio(null, null, null))
            os.write(report, b"%d %d\n" % (relay.pid, start_time(relay.pid)))
        os.waitpid(started.pid, 0)
    except MamushkaError:
        pass
    finally:
        os._exit(0)


def test_nothing_stays(tmp_path: Path) -> None:
    chance = random.Random(7)
    state = str(tmp_path / "state")
    reader, report = os.pipe2(os.O_NONBLOCK)
    creators = [_create(state, number, report) for number in range(MACHINES)]
    born: list[tuple[int, int]] = []
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            born += [(int(a), int(b)) for a, b in (line.split() for line in os.read(reader, 1 << 16).splitlines())]
        except BlockingIOError:
            pass
        victims = [*creators, *(pid for pid, begun in born if alive(pid, begun))]
        os.kill(chance.choice(victims), signal.SIGKILL)
        time.sleep(0.01)
    for pid in creators:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    runtime = MachineRuntime(state, cgroups=cgroups, maker=LocalMaker())
    for found in list(runtime.list()):
        runtime.delete(found.id, force=True)
        runtime.delete(found.id, force=True)
    assert os.listdir(state) == []
    assert not [line for line in _mounts() if state in line]
    for _ in range(100):
        if not any(alive(pid, begun) for pid, begun in born):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a monitor or a relay still runs")
    assert len(born) > MACHINES / 4


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()
