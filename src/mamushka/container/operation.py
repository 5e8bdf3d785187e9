"""What the operations inside a new container share.

They are performed between clone3 and execve, by a process that knows nothing but its script (``linux/script.py``):
an operation writes down what is to be called, and whatever that needs is looked up, encoded and opened before. Nothing
they do outlives the container's namespaces, so there is nothing to undo.
"""

from __future__ import annotations

import os

from mamushka.linux.abi import sizeof
from mamushka.linux.fd import RESOLVE_IN_PROC, open_how
from mamushka.linux.script import FURTHER, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.linux.script import Script, Variable

# What an operation's failure is about, where the caller is told in other words than the operation's own.
PROGRAM, DIRECTORY, HOOK = "program", "directory", "hook"
CONFINEMENT, LANDLOCK = "confinement", "landlock"

HOOK_ENDED = "the hook ended"  # and the number told with it is its wait status

# Descriptors that one operation leaves for the next.
ROOT = variable(FURTHER)  # the container's root directory
PROC = variable(FURTHER + 1)  # the container's procfs, as the kernel made it
DEVPTS = variable(FURTHER + 2)
EMPTY = variable(FURTHER + 3)  # a read-only empty directory, for masks; -1 until there is one
NULL = variable(FURTHER + 4)  # the container's null device, certainly; -1 until it was looked at
CONSOLE = variable(FURTHER + 5)  # the terminal's slave side
GATE = variable(FURTHER + 6)  # a fifo: a byte from it starts the program
OUTCOME = variable(FURTHER + 7)  # where a failure after the gate is written
FILE = variable(FURTHER + 8)  # the program's path, once it was found: an address
LABEL = variable(FURTHER + 14)  # where the next program's security label is written
HOST_PROC = variable(FURTHER + 16)  # the host's procfs, certainly; for what a process writes about itself
SYSFS = variable(FURTHER + 17)  # the container's sysfs
LISTENER = variable(FURTHER + 18)  # what installing a filter with a listener gave; -1 until then
RELEASED = variable(FURTHER + 19)  # 1 as soon as the agent has it, written from outside
# And those that hold for one operation.
TARGET = variable(FURTHER + 9)
TREE = variable(FURTHER + 10)
OPENED = variable(FURTHER + 11)
CURRENT = variable(FURTHER + 12)
RESULT = variable(FURTHER + 13)
BACK = variable(FURTHER + 15)


def open_in_proc(script: Script, path: bytes, into: Variable) -> None:
    """Open a file below HOST_PROC for writing: no mount and no link leads elsewhere. See linux/procfs.py."""
    how = open_how(flags=os.O_WRONLY | os.O_CLOEXEC, resolve=RESOLVE_IN_PROC)
    script.call("openat2", HOST_PROC, path, how, sizeof(how), into=into, about=b"/proc/" + path)


class Inside:
    """An operation in the container's own namespaces, which end with it."""

    __slots__ = ()
    about = ""
    # Whether what it writes follows from the bundle, descriptors, ``names`` and ``hangs_on``: see mold.py.
    settled = False

    def names(self) -> Sequence[bytes]:
        """What it gives to ``script.name``, in order."""
        return ()

    def hangs_on(self) -> object:
        """What else its calls hang on, to be compared."""
        return None

    def describe(self) -> str:
        """One line, as a person would type or say it."""
        raise NotImplementedError

    def write(self, script: Script) -> None:
        """Write down the calls that make the change."""
        raise NotImplementedError


# An execve's arguments may fill megabytes, and a description names them.
_DESCRIPTION_MAX = 1024


def script_of(operations: list[Inside], script: Script) -> None:
    """All operations, one after the other."""
    for operation in operations:
        script.begin(f"{operation.about}\0{operation.describe()[:_DESCRIPTION_MAX]}")
        operation.write(script)
