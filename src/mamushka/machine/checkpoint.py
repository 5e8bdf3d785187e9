"""Saving a machine, from outside of it: its monitor cannot open anything, so files are opened here and handed over.

    machine.json   what ``state`` writes of it; the last to be there, so a directory with it is whole
    memory         sparse
    disk           what the machine writes to, as it was at the same moment; sparse

A machine that is to run on holds still while its disk is copied; its memory was frozen by then, and is written when it
runs again. Holding still is over when whoever asked says so, or is gone. Whoever wants other machines to go on from it
at once (``Held``) writes nothing at all.

Files are their owner's alone: a program's memory is in them.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from mamushka.linux.fallocate import copy
from mamushka.machine import control, state
from mamushka.runtime import NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.control import Line
    from mamushka.machine.state import Saved
    from mamushka.runtime import CheckpointOptions

DISK = "disk"
# How long a machine may take to hold still and be written: of some GiB, to a slow disk.
_PATIENCE = 600.0
_PRIVATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Held:
    """A machine that holds still since this was made, and goes on with ``go_on``, or when this is closed.

    Descriptors: ``state`` of what is known of it, ``memory`` of its memory then, and ``disk`` of what it writes to,
    which is to be copied before it goes on; -1 where there is none.
    """

    def __init__(self, path: str) -> None:
        """``path`` is the monitor's socket. Raises why it cannot be saved."""
        self.state = self.memory = self.disk = -1
        self._line: Line | None = control.connect(path)
        try:
            self._line.wait(_PATIENCE)
            self._line.send({"ask": "save"})
            packet, given = _heard(self._line)
            self._take(packet, given)
        except BaseException:
            self.close()
            raise

    def _take(self, packet: control.Packet, given: list[int]) -> None:
        try:
            control.answered(packet)
            if len(given) not in (2, 3):
                raise Invalid(f"a machine that is saved gave {len(given)} descriptors")
        except BaseException:
            control.close(given)
            raise
        self.state, self.memory = given[:2]
        self.disk = given[2] if given[2:] else -1

    def go_on(self) -> float:
        """Let it; for how many seconds its program stood."""
        assert self._line is not None
        self._line.send({"ask": "go"})
        packet, given = _heard(self._line)
        control.close(given)
        answer = control.answered(packet)
        self._hang_up()
        return float(answer["seconds"]) if isinstance(answer, dict) else 0.0

    def end(self) -> None:
        """Kill it, and wait until it has gone."""
        assert self._line is not None
        self._line.send({"ask": "end"})
        try:
            packet, given = self._line.receive()
        except TimeoutError:
            raise Unavailable("the machine that was saved did not end in time") from None
        control.close(given)
        if packet:
            control.answered(packet)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def close(self) -> None:
        """Give everything back."""
        self._hang_up()
        for fd in (self.state, self.memory, self.disk):
            if fd >= 0:
                os.close(fd)
        self.state = self.memory = self.disk = -1

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _heard(line: Line) -> tuple[control.Packet, list[int]]:
    try:
        packet, given = line.receive()
    except TimeoutError:
        raise Unavailable("the machine did not hold still in time to be saved") from None
    if not packet:
        raise NotRunning("container not running")
    return packet, given


def check(options: CheckpointOptions) -> None:
    """Unsupported for what means something to criu alone and cannot be passed over."""
    for name in ("pre_dump", "parent", "page_server"):
        if getattr(options, name):
            raise Unsupported(f"the memory of a machine is written as a whole: no {name.replace('_', '-')}",
                              hint="leave it out")  # fmt: skip


def write(path: str, directory: str, options: CheckpointOptions) -> None:
    """Write the machine whose monitor is at ``path`` into a directory without one. On failure nothing is left in it."""
    check(options)
    os.makedirs(directory, 0o700, exist_ok=True)
    if os.path.exists(f"{directory}/{state.STATE}"):
        raise Conflict(f"{directory} has a saved machine already", hint="remove it first, or choose another")
    made = (f"{directory}/{state.MEMORY}", f"{directory}/{DISK}", f"{directory}/.{state.STATE}")
    for name in made:  # of one who was killed
        _unlink(name)
    try:
        _write(path, directory, options)
    except BaseException:
        for name in made:
            _unlink(name)
        raise


def _write(path: str, directory: str, options: CheckpointOptions) -> None:
    with Held(path) as held:
        if held.disk >= 0:
            copy_disk(held.disk, f"{directory}/{DISK}")
        if options.leave_running:
            trace.event("machine.went_on", stood=held.go_on())
        _keep(f"{directory}/{state.MEMORY}", lambda fd: state.copy_memory(held.memory, fd))
        _keep(f"{directory}/.{state.STATE}", lambda fd: copy(held.state, fd, os.fstat(held.state).st_size))
        os.rename(f"{directory}/.{state.STATE}", f"{directory}/{state.STATE}")
        if not options.leave_running:
            held.end()


def _keep(path: str, fill: Callable[[int], None]) -> None:
    fd = os.open(path, _PRIVATE, 0o600)
    try:
        fill(fd)
    finally:
        os.close(fd)


def copy_disk(disk: int, path: str) -> None:
    """A disk's copy at ``path``, which shares blocks where the file system can; whole or not there."""
    directory, name = os.path.split(path)
    staged = f"{directory}/.{name}.unfinished"  # of one who was killed, it is overwritten
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        copy(disk, fd, os.fstat(disk).st_size)
        os.rename(staged, path)
    except BaseException:
        _unlink(staged)
        raise
    finally:
        os.close(fd)


def read(directory: str, memory: int) -> tuple[Saved, int]:
    """(a saved machine, a descriptor of its memory) out of a directory; ``memory`` where it is not there, else -1."""
    try:
        if memory < 0:
            return state.read(directory)
        with open(f"{directory}/{state.STATE}", "rb") as file:
            return state.load(file.read(state.SIZE_MAX + 1)), os.dup(memory)
    except FileNotFoundError as error:
        raise NotFound(f"there is no saved machine at {directory}: {error.filename} is not there") from error


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
