"""The engine for an ordinary user: this very process becomes root of the user's own user namespace.

All processes of one user's engine share one such namespace, so that each may act on every workload. Nobody keeps it:
it lives as long as a process is in it, which is a shim, a workload or a command. Who comes looks for one of those,
under a lock, and makes a namespace where there is none. Each process that enters writes itself down in a list; where
all of them were killed, the records of the workloads lead there.

Nothing is mounted for longer than a command: a root is a detached tree that its workload's mount namespace takes along,
and each process has a mount namespace of its own, which ends with it.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container import subordinate
from mamushka.errors import Denied
from mamushka.linux import users
from mamushka.linux.flock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LIST = "members"


def roots() -> tuple[str, str]:
    """(data root, run root) of this user. XDG Base Directory Specification."""
    uid = os.geteuid()
    home = os.environ.get("HOME") or _home(uid)
    share = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    return f"{share}/mamushka", f"{subordinate.run_directory()}/mamushka"


def _home(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        raise Denied(f"uid {uid} has no home directory", hint="set HOME, or give --data-root and --run-root") from None


def enter(run_root: str) -> None:
    """Become root of the namespace that this user's workloads have, or of a new one; once.

    Who is root of a user namespace already stays in it, with mounts that are his to change.
    """
    if os.geteuid() == 0:
        if not users.owns_mounts():
            subordinate.settle()
        return
    subordinate.check_threads()
    os.makedirs(run_root, 0o711, exist_ok=True)
    with Lock(f"{run_root}/{_LIST}.lock"):
        namespace = _find(run_root)
        if namespace >= 0:
            try:
                subordinate.enter(namespace)
            finally:
                os.close(namespace)
        else:
            uids, gids = subordinate.own_maps()
            subordinate.make(uids, gids)
            trace.event("rootless.made", ids=sum(item.size for item in uids))
        _write_down(run_root)


def limitation() -> str:
    """Why this user has one id only, and how he gets more; empty where he has many."""
    if not users.single() or subordinate.entered_as < 0:
        return ""
    return subordinate.lacking(subordinate.entered_as) or "stop what runs: it began with one id"


def stay(run_root: str) -> None:
    """A process that was forked from one that entered writes itself down too."""
    with Lock(f"{run_root}/{_LIST}.lock"):
        _write_down(run_root)


def _write_down(run_root: str) -> None:
    """The list without those who have ended, and with this process."""
    from mamushka.record import start_time

    pid = os.getpid()
    entries = [(other, start) for other, start in _listed(run_root) if other != pid and _lives(other, start)]
    text = "".join(f"{number} {start}\n" for number, start in (*entries, (pid, start_time(pid))))
    descriptor = os.open(f"{run_root}/{_LIST}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _listed(run_root: str) -> list[tuple[int, int]]:
    try:
        with open(f"{run_root}/{_LIST}", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return []
    return [(int(line[0]), int(line[1])) for line in lines if len(line) == 2]  # a killed writer's last is cut short


def _lives(pid: int, start: int) -> bool:
    from mamushka.record import alive

    return alive(pid, start)


def _find(run_root: str) -> int:
    """A descriptor of the namespace that a living process of this engine is in; -1 without one."""
    for pid in _members(run_root):
        try:
            namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has ended
            continue
        found = _below_ours(namespace)
        if found >= 0:
            return found
    return -1


def _members(run_root: str) -> Iterator[int]:
    from mamushka.record import records

    yield from (pid for pid, start in reversed(_listed(run_root)) if _lives(pid, start))
    yield from (pid for record in records(f"{run_root}/containers") if (pid := record.living()))


def _below_ours(namespace: int) -> int:
    """The namespace, or the one that it is in, which stands directly below this process's; -1 where none does."""
    ours = os.stat("/proc/self/ns/user").st_ino
    while True:
        try:
            above = users.NS_GET_PARENT(namespace)
        except OSError:  # out of sight, or our own
            os.close(namespace)
            return -1
        os.set_inheritable(above, False)
        if os.fstat(above).st_ino == ours:
            os.close(above)
            return namespace
        os.close(namespace)
        namespace = above
