"""What the operations inside a new container share.

They run between clone3 and execve, in a copy of the caller's process: system calls only, through ``linux/`` and
``os``; whatever they need is imported, encoded and looked up before. Nothing they do outlives the container's
namespaces, so there is nothing to undo.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# What an operation's failure is about, where the caller is told in other words than the operation's own.
PROGRAM, DIRECTORY = "program", "directory"


def _no_terminal(_fd: int, _steal: int) -> None:
    raise AssertionError("there is a terminal that no operation has made")


class Site:
    """The place where a container is being built: descriptors that one operation leaves for the next; -1 is none."""

    __slots__ = ("channel", "console", "control", "devpts", "empty", "gate", "peer", "pid", "proc", "root", "status")

    def __init__(self) -> None:
        self.root = -1  # the container's root directory
        self.proc = -1  # the container's procfs, as the kernel made it
        self.devpts = -1
        self.empty = -1  # a read-only empty directory, for masks
        self.console = -1  # the terminal's slave side
        self.control: Callable[[int, int], None] = _no_terminal  # TIOCSCTTY, where there is one
        self.channel = -1  # to the process that builds the container
        self.peer = -1  # the other end, which only the builder may hold
        self.gate = -1  # a fifo: a byte from it starts the program
        self.status = -1  # where a failure after the gate is written
        self.pid = 0  # this process as the host counts


class Inside:
    """An operation in the container's own namespaces, which end with it."""

    __slots__ = ()
    about = ""

    def describe(self) -> str:
        """One line, as a person would type or say it."""
        raise NotImplementedError

    def execute(self) -> None:
        """Make the change, or raise OSError."""
        raise NotImplementedError

    def undo(self) -> None:
        """Nothing: the kernel takes it back when the namespaces end."""
