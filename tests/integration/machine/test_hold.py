"""Holding a machine still: what happens in which order, and that it goes on in any case. The agent is a double."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mamushka.errors import Unavailable
from mamushka.machine import state
from mamushka.machine.board import Board
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.hold import Hold
from mamushka.machine.inside import Held
from mamushka.machine.machine import PAUSED, RUNNING, Machine
from mamushka.machine.memory import Memory, shared_region
from tests.integration.machine.guests import START, assemble, needs_kvm, protected
from tests.integration.machine.test_state import COUNTING, counts_on

pytestmark = needs_kvm


class Agent:
    """Notes when it froze and thawed, and how the machine was then."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.told = machine, list[tuple[bool, str]]()
        self.failure: OSError | None = None

    def freeze(self, container: int, frozen: bool) -> None:
        self.told.append((frozen, self.machine.state))
        if frozen and self.failure is not None:
            raise self.failure


@pytest.fixture
def board() -> Iterator[Board]:
    memory = Memory((shared_region(0, 64 << 20),))
    memory.write(START, assemble(COUNTING))
    made = Board(KvmExecutor(), memory)
    made.add("rng", Rng())
    made.machine.start(protected())
    yield made
    made.close()


def again(held: Held) -> Board:
    """Another one that goes on from it."""
    raw = os.pread(held.state, 1 << 20, 0)
    saved = state.load(raw)
    made = Board(KvmExecutor(), state.private_memory(saved, held.memory))
    made.add("rng", Rng())
    state.reinstate(made.machine, made.parts, saved)
    for fd in (held.state, held.memory):
        os.close(fd)
    return made


def taking(
    hold: Hold, held: Callable[[Held], None], *, paused: bool = False
) -> tuple[threading.Thread, threading.Event]:
    """In a thread, as the worker does; the event ends it."""
    go = threading.Event()

    def labels(frozen: bool) -> dict[str, str]:
        return {"program": "frozen" if frozen else "running"}

    thread = threading.Thread(target=lambda: hold.take(labels, held, go, paused=paused))
    thread.start()
    return thread, go


def test_the_program_is_frozen_first_and_thawed_last(board: Board) -> None:
    agent, found, there = Agent(board.machine), list[Held](), threading.Event()
    hold = Hold(board, agent, ())  # type: ignore[arg-type]
    for turn in range(3):

        def told(held: Held) -> None:
            found.append(held)
            there.set()

        thread, go = taking(hold, told)
        assert there.wait(10)
        there.clear()
        assert board.machine.state == PAUSED
        assert agent.told[2 * turn :] == [(True, RUNNING)]
        go.set()
        thread.join(10)
        assert agent.told[2 * turn :] == [(True, RUNNING), (False, RUNNING)]
        assert state.load(os.pread(found[-1].state, 1 << 20, 0)).labels == {"program": "frozen"}
        child = again(found[-1])
        child.machine.start()
        assert counts_on(child.machine) and counts_on(board.machine)
        child.close()


def test_one_that_is_paused_is_asked_for_nothing_and_stays_so(board: Board) -> None:
    agent, there, found = Agent(board.machine), threading.Event(), list[Held]()
    hold = Hold(board, agent, ())  # type: ignore[arg-type]
    board.machine.pause()

    def told(held: Held) -> None:
        found.append(held)
        there.set()

    thread, go = taking(hold, told, paused=True)
    assert there.wait(10)
    go.set()
    thread.join(10)
    assert agent.told == [] and board.machine.state == PAUSED
    assert state.load(os.pread(found[0].state, 1 << 20, 0)).labels == {"program": "running"}
    child = again(found[0])
    child.machine.start()
    assert counts_on(child.machine)
    child.close()
    board.machine.resume()
    assert counts_on(board.machine)


def test_a_program_that_cannot_be_frozen_is_not_saved_and_runs_on(board: Board) -> None:
    agent = Agent(board.machine)
    agent.failure = OSError(errno.ETIMEDOUT, "freeze: Connection timed out")
    hold = Hold(board, agent, ())  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="cannot be frozen"):
        hold.take(lambda frozen: {}, lambda held: None, threading.Event(), paused=False)
    assert agent.told == [(True, RUNNING), (False, RUNNING)], "what is half frozen is thawed"
    assert counts_on(board.machine)


def test_whatever_fails_it_goes_on_and_nothing_is_left_open(board: Board) -> None:
    agent = Agent(board.machine)
    hold = Hold(board, agent, ())  # type: ignore[arg-type]

    def told(held: Held) -> None:
        os.close(held.state)
        os.close(held.memory)
        raise ValueError("nobody to tell")

    for turn in range(3):
        if turn == 1:
            before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ValueError, match="nobody"):
            hold.take(lambda frozen: {}, told, threading.Event(), paused=False)
        assert agent.told[-1] == (False, RUNNING)
        assert counts_on(board.machine)
    assert len(os.listdir("/proc/self/fd")) == before
    # A caller that was faster than the machine: it does not wait for ever.
    go = threading.Event()
    go.set()
    begin = time.monotonic()
    hold.take(lambda frozen: {}, given_back, go, paused=False)
    assert time.monotonic() - begin < 10


def given_back(held: Held) -> None:
    os.close(held.state)
    os.close(held.memory)
