"""How something ended, and who ended it."""

from __future__ import annotations

from mamushka.errors import MamushkaError
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.workload import Workload
    from mamushka.runtime import Exit

EXITED, SIGNAL, OOM, TIMEOUT, KILLED, OUTPUT = "exited", "signal", "oom", "timeout", "killed", "output"


@value
class Verdict:
    """Who ended a process, and with which limit.

    ``by`` is one of: exited (itself, with ``code``), signal (somebody's ``signal``), oom (the kernel, at ``limit``),
    timeout (we, at ``limit``), output (we, since it wrote more than ``limit``), killed (we, because you asked).
    """

    by: str
    code: int = 0
    signal: int = 0
    limit: str = ""

    @property
    def returncode(self) -> int:
        """As a shell reports it: the code, or 128 + signal."""
        return 128 + self.signal if self.signal else self.code


def judge(exit: Exit, *, asked: str = "", limit: str = "", memory: int = 0) -> Verdict:
    """The verdict on an exit; ``asked`` and ``limit`` say what we ourselves did to it, if anything."""
    by = asked or (OOM if exit.oom_killed else SIGNAL if exit.signal else EXITED)
    if by == OOM:
        limit = f"memory={memory}" if memory else "memory"
    return Verdict(by, exit.code, exit.signal, limit)


@value
class Runtime:
    """The wall that was really used, and why this one."""

    name: str
    reason: str = ""


def runtime_of(workload: Workload) -> Runtime:
    """What the engine says it used."""
    return Runtime(workload.runtime, workload.runtime_reason)


class Failed(MamushkaError):
    """What ``Completed.check`` raises; ``completed`` is the whole result."""

    def __init__(self, completed: Completed) -> None:
        super().__init__(f"{completed.args[0]} ended with {completed.returncode} ({completed.verdict.by})")
        self.completed = completed


@value
class Completed:
    """A process that has ended, with all that it wrote.

    >>> mamushka.once("busybox", "echo", "hello").stdout
    'hello\\n'
    """

    args: tuple[str, ...]
    verdict: Verdict
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""

    @property
    def returncode(self) -> int:
        """As a shell reports it: the code, or 128 + signal."""
        return self.verdict.returncode

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 come as surrogates (PEP 383), so nothing is lost."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error as text, like ``stdout``."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    def check(self) -> Completed:
        """Itself when it ended with 0, else Failed."""
        if self.returncode:
            raise Failed(self)
        return self
