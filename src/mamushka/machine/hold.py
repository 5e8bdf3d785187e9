"""A machine that is saved while its program runs, in its own monitor: it holds still until whoever asked lets it go on.

    worker      what can be done before is done: disks are flushed, memory that was frozen once is made ready (state.py)
                the program's processes are frozen by the guest's own kernel; then the machine holds still
                its state is taken, its memory frozen; ``held`` is told
    caller      copies the disks, and whatever else belongs to that moment
    worker      ``go`` is set: the machine runs, then its program

Frozen by the guest's kernel, and not only between two instructions: where another machine goes on from this one, its
program wakes up when entropy, clock, name and addresses are its own, and not before. A machine that is paused already
cannot be asked for that. There the program runs on for the moment that its agent needs to be told.

Everything that the agent is asked meanwhile waits behind it in the same worker, and is done when the machine goes on.
"""

from __future__ import annotations

import os
import threading
import time

from mamushka import trace
from mamushka.errors import MamushkaError, Unavailable
from mamushka.linux.memory import PAGEMAP
from mamushka.machine import control, state
from mamushka.machine.inside import MAIN, Held
from mamushka.machine.machine import PAUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.machine.agent import Agent
    from mamushka.machine.board import Board
    from mamushka.machine.state import Frozen


class Hold:
    """Holds one machine still, one time after the other. ``take`` is for the worker's thread."""

    def __init__(self, board: Board, agent: Agent, disks: tuple[int, ...]) -> None:
        """``disks`` are descriptors of what the machine writes to, for whoever copies them; ours."""
        self._board, self._machine, self._agent, self._disks = board, board.machine, agent, disks
        self._pagemap = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)  # while there are paths

    def take(
        self,
        labels: Callable[[bool], Mapping[str, str]],
        held: Callable[[Held], None],
        go: threading.Event,
        *,
        paused: bool,
    ) -> float:
        """Hold it still until ``go``, which may be set at any time; for how many seconds its program stood.

        ``labels`` are asked for while it holds still, with whether the program is frozen. ``paused`` where it holds
        still already, and is to stay so.
        """
        frozen: Frozen | None = None
        ready = state.ready(self._machine)
        for disk in self._disks:
            os.fdatasync(disk)  # now, while it runs: what is left when it holds still is little
        begin = time.monotonic()
        try:
            if not paused:
                self._freeze_program()
                self._machine.pause()
            saved = state.capture(self._machine, self._board.parts, labels(not paused))
            frozen = state.freeze(self._machine, ready, self._pagemap)
            ready = -1
            held(Held(control.file_of(state.dump(saved)), os.dup(frozen.fd), self._disks))
            go.wait()
        finally:
            if not paused:
                self._resume()
            seconds = time.monotonic() - begin
            if frozen is not None:
                frozen.close()
            if ready >= 0:
                os.close(ready)
        trace.event("machine.saved", seconds=seconds)
        return seconds

    def _freeze_program(self) -> None:
        try:
            self._agent.freeze(MAIN, True)
        except OSError as error:
            raise Unavailable(
                f"the program cannot be frozen, and so not be saved: {error.strerror}",
                hint="one of its processes waits for something that cannot be interrupted; try again",
            ) from error

    def _resume(self) -> None:
        """Whatever was begun of it."""
        if self._machine.state == PAUSED:
            self._machine.resume()
        try:
            self._agent.freeze(MAIN, False)
        except (MamushkaError, OSError) as error:
            trace.event("machine.not_thawed", error=str(error))  # the guest is not there any more
