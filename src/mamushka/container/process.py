"""What holds for each process of a container, its first as for further ones."""

from __future__ import annotations

from mamushka.container.defaults import LANDLOCK
from mamushka.container.program import (
    ArrangeDescriptors,
    Confine,
    EnterDirectory,
    Execute,
    FindHome,
    FindProgram,
    ResetSignals,
)
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.operation import Inside
    from mamushka.container.privileges import Privileges
    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Config, Linux, Process


def check_process(process: Process | None) -> Process:
    """The process, or why it cannot be run."""
    if process is None:
        raise Invalid("config.json has no process", hint="a container starts with a program: process.args")
    if not process.args or not process.args[0]:
        raise Invalid("process.args names no program")
    if not process.cwd.startswith("/"):
        raise Invalid(f"process.cwd {process.cwd!r} is not an absolute path")
    return process


def restrictions(config: Config, process: Process) -> list[Inside]:
    """What else the bundle asks to be kept from one of its processes, whichever it is."""
    if LANDLOCK not in config.annotations:
        return []
    from mamushka.container import landlock

    policy = landlock.of(config.annotations[LANDLOCK])
    return [landlock.Restrict(policy, no_new_privileges=process.no_new_privileges)]


def attributes_of(process: Process, linux: Linux) -> list[Inside]:
    """What the process is besides its rights; mostly nothing is asked for."""
    if not (process.scheduler or process.io_priority or linux.memory_policy or linux.personality):
        return []
    from mamushka.container.attributes import attributes

    return attributes(process, linux)


def confinement(process: Process, *, seccomp: bool) -> str:
    """What confines the process, in a line."""
    kept = process.capabilities.bounding if process.capabilities else ()
    words = [f"uid {process.user.uid} gid {process.user.gid}"]
    words += [f"{len(kept)} capabilities"] if process.capabilities else ["all capabilities"]
    words += ["no_new_privs"] if process.no_new_privileges else []
    words += ["a system call filter"] if seccomp else []
    return "confine to " + ", ".join(words)


def further_process(
    process: Process,
    stdio: Stdio,
    preserve: tuple[int, ...],
    enter: list[Inside],
    besides: list[Inside],
    privileges: Privileges,
) -> list[Inside]:
    """The operations of exec: a process in namespaces that are there already."""
    find = FindProgram(process)
    operations = list(enter)
    if process.terminal:
        from mamushka.container.console import OpenConsole

        operations.append(OpenConsole(process, mounted=False, pts=False))
    operations += [
        ArrangeDescriptors(stdio, preserve, terminal=process.terminal, gated=False, labelled=privileges.labelled),
        EnterDirectory(process, make=False),
        find,
        ResetSignals(),
    ]
    if b"HOME" not in find.environment:
        operations.append(FindHome())
    operations += [
        *besides,
        Confine(privileges, confinement(process, seccomp=False), gated=False),
        Execute(find, process.args),
    ]
    return operations
