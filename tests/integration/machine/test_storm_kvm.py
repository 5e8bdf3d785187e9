"""A hundred machines that run on KVM, whose creators, monitors and relays are killed at any instant: nothing is left.

The guest's instructions are a mini-guest's; its programs are a double's (local.py), so that what stands above a machine
can be killed a hundred times in half a minute. ``STORM_SEED`` in the environment throws the same dice again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from mamushka.container import defaults
from mamushka.container.cgroups import cgroup as cgroups
from mamushka.errors import Conflict, MamushkaError, NotFound
from mamushka.machine.board import Board, ram
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.runtime import MachineRuntime
from mamushka.record import Record
from mamushka.runtime import CREATED, CREATING, PAUSED, RUNNING, STOPPED, Bundle, NotRunning, Stdio
from mamushka.spec.runtime import Config, Linux, Process, Root
from tests import peers
from tests.integration.machine.guests import START, assemble, needs_kvm, protected
from tests.integration.machine.local import Local

if TYPE_CHECKING:
    from mamushka.machine.inside import Guest

pytestmark = [pytest.mark.root, needs_kvm]

MACHINES, AT_ONCE = 100, 5
# The instants at which somebody dies: making takes some ten milliseconds here, so it is met in every step.
WITHIN = 0.08
PR_SET_CHILD_SUBREAPER = 36
CODE = "again: inc dword ptr [0x4000]\nmov edx, 0x3f8\nmov al, 65\nout dx, al\njmp again"
MARK = f"{os.getpid()}-storm"


class Mini(Local):
    """Programs of the host's beside a machine that counts."""

    def __init__(self, code: bytes) -> None:
        super().__init__()
        self._board = Board(KvmExecutor(), ram(2 << 20), vcpus=2)
        self._board.machine.memory.write(START, code)
        self._board.console(lambda _: None)
        self._board.add("rng", Rng())

    def boot(self, *settings: Any) -> None:
        self._board.machine.start(protected())
        super().boot(*settings)

    def pause(self) -> None:
        self._board.machine.pause()
        super().pause()

    def resume(self) -> None:
        self._board.machine.resume()
        super().resume()

    def close(self, done: Callable[[], None]) -> None:
        self._board.close()
        done()


class MiniMaker:
    """Makes such, in the monitor."""

    def __init__(self) -> None:
        self._code = assemble(CODE)

    def prepare(self, record: Record, bundle: Bundle, root: int) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        return lambda: Mini(self._code), ()

    def features(self) -> Mapping[str, object]:
        return {}


class Storm:
    """The runtime, and who was begun."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.runtime = MachineRuntime(state, cgroups=cgroups, maker=MiniMaker())

    def bundle(self, id: str) -> Bundle:
        linux = Linux(cgroups_path=f"/mamushka-test/{MARK}-{id}", namespaces=defaults.NAMESPACES)
        process = Process(args=("/bin/sleep", "1000"), env=("PATH=/usr/bin:/bin",))
        return Bundle("/", Config("1.2.0", process, Root("/"), linux=linux))

    def apart(self, act: Callable[[], object]) -> int:
        """Do it in a child; its pid."""
        child = os.fork()
        if child == 0:
            try:
                null = os.open("/dev/null", os.O_RDWR)
                os.dup2(null, 2)
                act()
            finally:
                os._exit(0)
        return child

    def create(self, id: str, how: str) -> int:
        make = getattr(self.runtime, how)
        return self.apart(lambda: make(id, self.bundle(id), Stdio()))

    def monitor(self, id: str) -> int:
        try:
            return self.runtime.state(id).pid
        except NotFound:
            return 0

    def visit(self, id: str, dice: random.Random) -> None:
        """What callers do with a machine that may be anything by now: they are refused, or served."""
        deeds = (
            lambda: self.runtime.start(id),
            lambda: self.runtime.pause(id),
            lambda: self.runtime.resume(id),
            lambda: self.runtime.kill(id, signal.SIGTERM),
            lambda: self.runtime.ask(id, "sizes"),
            lambda: os.kill(self.apart(lambda: self.runtime.exec(id, Process(args=("/bin/true",)), Stdio())), 9),
        )
        with contextlib.suppress(Conflict, NotFound, NotRunning, MamushkaError):
            dice.choice(deeds)()


def kill(pid: int) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def reap() -> None:
    """Those who have ended, whoever made them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            pass


def left() -> list[str]:
    """Processes and control groups of the storm's."""
    found = [path for path, _, _ in os.walk("/sys/fs/cgroup") if MARK in path]
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/cgroup") as file:
            if MARK in file.read():
                found.append(f"process {entry}")
    return found


@pytest.fixture
def storm(tmp_path: Any) -> Iterator[Storm]:
    peers.need_root()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield Storm(str(tmp_path / "state"))
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def test_whoever_is_killed_leaves_what_delete_removes(storm: Storm) -> None:
    seed = int(os.environ.get("STORM_SEED", "0")) or random.randrange(1 << 32)
    print(f"STORM_SEED={seed}")
    dice = random.Random(seed)
    gc.collect()  # what other tests have left to the collector is none of this one's
    descriptors = len(os.listdir("/proc/self/fd"))
    seen = dict.fromkeys((CREATING, CREATED, RUNNING, PAUSED, STOPPED, "none"), 0)
    for first in range(0, MACHINES, AT_ONCE):
        ids = [f"storm-{number}" for number in range(first, first + AT_ONCE)]
        creators = {id: storm.create(id, dice.choice(("run", "create"))) for id in ids}
        for id in ids:
            time.sleep(dice.uniform(0, WITHIN))
            if dice.random() < 0.4:
                kill(creators[id])
            for _ in range(dice.randrange(3)):
                storm.visit(id, dice)
            if dice.random() < 0.5:
                kill(storm.monitor(id))
        for id in ids:
            # Whatever was killed, the next one who asks is told something that is true, and can take it away.
            try:
                seen[storm.runtime.state(id).status] += 1
            except NotFound:
                seen["none"] += 1
            kill(creators[id])
            storm.runtime.delete(id, force=True)
            assert not os.path.exists(f"{storm.state}/{id}")
            storm.runtime.delete(id, force=True)
        reap()
    print(seen)
    assert seen[RUNNING] and seen[STOPPED], "the instants were all alike"
    assert not os.path.exists(storm.state) or os.listdir(storm.state) == []
    end = time.monotonic() + 10
    while left() and time.monotonic() < end:
        reap()
        time.sleep(0.05)
    assert left() == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
