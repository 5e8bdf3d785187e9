"""How a probe is written: calls that are tried in order, each telling its outcome at once.

The probe is a script of system calls (linux/script.py), an executable of a few pages, so it runs in any root and needs
nothing of it. Each step is one call. Its outcome is written to standard output as a record:

    0   the step's number          4   errno, or 0
    8   two iovecs, of this record and of what the call has read; the second's length is the call's result

and what it has read follows where the step keeps it. So nothing is lost of a probe that dies half-way.
"""

from __future__ import annotations

from contextlib import contextmanager
from errno import errorcode

from mamushka.errors import Invalid, Unavailable
from mamushka.linux import bpf, keyring, mount, numbers, process  # noqa: F401  # their calls are declared
from mamushka.linux.executable import words
from mamushka.linux.script import ANY, ERROR, NEXT, Label, Script, Variable
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROOM = 16384  # what one step keeps at most

_RECORD, _ERRNO, _RESULT = 40, 4, 32
_SIGCHLD = 17
_AT_FDCWD = -100
O_CLOEXEC, O_NONBLOCK = 0x80000, 0x800


@value
class Outcome:
    """How a step went: an errno or 0, the call's result, and what it has read."""

    error: int
    result: int = 0
    content: bytes = b""

    @property
    def name(self) -> str:
        """EPERM, or nothing where it succeeded."""
        return errorcode.get(self.error, str(self.error)) if self.error else ""


class Attempts:
    """The probe in the making."""

    def __init__(self) -> None:
        self.script = Script()
        self.steps: list[str] = []
        self.keeps: set[str] = set()  # steps that tell what they have read
        self._room = self.script.room(ROOM)

    @property
    def room(self) -> int:
        """Where a step that keeps what it reads has it put."""
        return self._room

    def variable(self) -> Variable:
        """A variable; -1 until something is stored, as no descriptor and no process is."""
        found = self.script.variable()
        self.script.store(-1, found)
        return found

    def step(self, name: str, call: str, *arguments: Any, keep: bool = False, into: Variable | None = None) -> Variable:
        """Try a call and tell the outcome; the answer is where its errno will be."""
        script = self.script
        here = script.room(0)
        record = words([len(self.steps), 0], 4) + words([here, _RECORD, self._room, 0], 8)
        assert script.copy(record) == here
        assert name not in self.steps, name
        self.steps.append(name)
        if keep:
            self.keeps.add(name)
        error, result = Variable(here + _ERRNO), Variable(here + _RESULT)
        plain = [int(item) if isinstance(item, int) else item for item in arguments]  # members of an enum, too
        script.attempt(call, *plain, into=result)
        script.store(ERROR, error)
        script.call("writev", 1, here + 8, 2 if keep else 1, on={ANY: NEXT})
        if into is not None:
            with self.where(error):
                script.store(result, into)
        return error

    @contextmanager
    def where(self, error: Variable) -> Iterator[None]:
        """What is done only where that step succeeded."""
        no = Label()
        self.script.compare(error, -1, 0, no)
        yield
        self.script.mark(no)

    @contextmanager
    def child(self) -> Iterator[None]:
        """What is done by a child that ends afterwards: it may change what cannot be changed back."""
        script, pid, parent = self.script, self.variable(), Label()
        script.attempt("clone", _SIGCHLD, 0, 0, 0, 0, into=pid)
        script.compare(pid, -1, 0, parent)
        yield
        script.call("exit_group", 0)
        script.mark(parent)
        script.call("wait4", pid, 0, 0, 0, on={ANY: NEXT})

    def open(self, name: str, path: bytes, flags: int = 0) -> tuple[Variable, Variable]:
        """Try to open; (its errno, the descriptor)."""
        fd = self.variable()
        error = self.step(name, "openat", _AT_FDCWD, path, flags | O_CLOEXEC | O_NONBLOCK, 0, into=fd)
        return error, fd

    def close(self, fd: Variable) -> None:
        """Close it, if it is open."""
        self.script.call("close", fd, on={ANY: NEXT})

    def read(self, name: str, path: bytes, size: int = ROOM) -> None:
        """Try to open and read; the steps are ``name`` and ``name read``."""
        error, fd = self.open(name, path)
        with self.where(error):
            self.step(f"{name} read", "read", fd, self._room, size, keep=True)
            self.close(fd)

    def copy(self, name: str, address: int, size: int) -> None:
        """Keep what lies at an address: at most what a pipe holds, which copies what a script cannot."""
        script, ends = self.script, self.script.room(8)
        reader, writer = Variable(ends), Variable(ends + 4)
        script.attempt("pipe2", ends, O_CLOEXEC | O_NONBLOCK)
        script.attempt("write", writer, address, size)
        self.step(name, "read", reader, self._room, size, keep=True)
        for end in (reader, writer):
            self.close(end)

    def list(self, name: str, path: bytes) -> None:
        """Try to list a directory; the steps are ``name`` and ``name list``."""
        error, fd = self.open(name, path)
        with self.where(error):
            self.step(f"{name} list", "getdents64", fd, self._room, ROOM, keep=True)
            self.close(fd)

    def writable(self, name: str, path: bytes) -> None:
        """Try to open for writing, and write nothing: all that decides is decided at the opening."""
        error, fd = self.open(name, path, flags=1)
        with self.where(error):
            self.close(fd)

    def write(self, fd: int) -> None:
        """End the probe, and write its executable to an empty file."""
        self.step("end", "getpid")
        self.script.call("exit_group", 0)
        self.script.write(fd)


def parse(told: bytes, attempts: Attempts) -> dict[str, Outcome]:
    """The outcome of each step that was made, by its name. Unavailable where the probe did not come to its end.

    Who wrote this sat behind the wall: any other bytes are Invalid.
    """
    found: dict[str, Outcome] = {}
    at, last = 0, "its start"
    while at < len(told):
        record = told[at : at + _RECORD]
        number = int.from_bytes(record[:4], "little")
        if len(record) < _RECORD or number >= len(attempts.steps):
            raise Invalid(f"what the probe wrote is no record, at byte {at}")
        name = last = attempts.steps[number]
        error = int.from_bytes(record[_ERRNO : _ERRNO + 4], "little")
        result = 0 if error else int.from_bytes(record[_RESULT : _RESULT + 4], "little")
        at += _RECORD
        size = result if name in attempts.keeps else 0
        if size > ROOM or at + size > len(told):
            raise Invalid(f"what the probe wrote is shorter than it says, at byte {at}")
        found[name] = Outcome(error, result, told[at : at + size])
        at += size
    if "end" not in found:
        raise Unavailable(
            f"the probe ended early, after {last!r}", hint="a filter that kills leaves nothing to be tried"
        )
    return found
