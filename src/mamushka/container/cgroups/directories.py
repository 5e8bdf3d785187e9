"""The directories that cgroups are: made, filled, handed down to, and removed."""

from __future__ import annotations

import errno
import os

from mamushka.container.cgroups.files import children, processes, read, refused, write
from mamushka.errors import Conflict


def make(directory: str, made: list[str]) -> None:
    """Make a directory, with those above it, and note it. Conflict where it is there with processes inside."""
    try:
        os.mkdir(directory, 0o755)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(directory), 0o755, exist_ok=True)
        return make(directory, made)
    except FileExistsError:
        inside = processes(directory)
        if inside:
            raise Conflict(f"the cgroup {directory} is in use by {', '.join(map(_told, inside[:8]))}",
                           hint="choose another cgroupsPath, or stop these processes") from None  # fmt: skip
        return None
    made.append(directory)
    return None


def _told(pid: int) -> str:
    """A process by its number and the name of its program."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return f"{pid} ({file.read().strip()})"
    except OSError:  # it has just ended
        return str(pid)


def discard(directory: str) -> bool:
    """Remove a directory and those below it; False while a process is inside."""
    try:
        os.rmdir(directory)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    below = children(directory)
    return bool(below) and all(discard(child) for child in below) and discard(directory)


def move(directory: str, pid: int) -> None:
    """Move a process here; harmless when it has ended."""
    try:
        write(directory + "/cgroup.procs", str(pid))
    except OSError as error:
        if error.errno != errno.ESRCH:  # it has ended
            raise refused(directory + "/cgroup.procs", str(pid), error) from error


def hand_down(directory: str, needed: set[str], optional: set[str]) -> None:
    """Hand controllers down to a directory's children; Conflict when a needed one does not come."""
    file = directory + "/cgroup.subtree_control"
    absent = (needed | optional) - {*read(file).split()}
    for wanted in (absent, absent & needed):  # all in one write; else the needed alone, to say which fails
        if not wanted:
            return
        text = " ".join(f"+{name}" for name in sorted(wanted))
        try:
            write(file, text)
            return
        except OSError as error:
            if wanted & needed and (wanted == absent & needed):
                raise Conflict(
                    f"cannot set {file} to {text!r}: {error.strerror}",
                    hint="a cgroup with processes of its own cannot hand controllers down: move them to a child",
                ) from error


def fill_cpuset(directory: str, root: str) -> None:
    """Give a v1 cpuset, and those above it, the CPUs and nodes of its parent: empty ones let no process in."""
    if directory == root:
        return
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not read(f"{directory}/{file}").strip():
            fill_cpuset(os.path.dirname(directory), root)
            write(f"{directory}/{file}", read(f"{os.path.dirname(directory)}/{file}").strip())
