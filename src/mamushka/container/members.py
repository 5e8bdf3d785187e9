"""Who is in a container, where no cgroup says it: the processes of its pid namespace, and of those below."""

from __future__ import annotations

import os


def members(init: int) -> tuple[int, ...]:
    """The pids, as this process's pid namespace counts. ``init`` is the first of them; 0 where it has ended."""
    if not init:
        return ()
    try:
        depth = len(_numbers(init))
        if depth == len(_numbers(os.getpid())):
            return (init,)  # it shares the caller's namespace, which holds strangers
        own = os.stat(f"/proc/{init}/ns/pid").st_ino
    except OSError:
        return ()
    return tuple(
        sorted(pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _inside(pid, own, depth))
    )


def _inside(pid: int, namespace: int, depth: int) -> bool:
    try:
        numbers = _numbers(pid)
        if len(numbers) < depth:
            return False
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace or _descends(pid, namespace)
    except OSError:  # it has ended, or is a stranger's
        return False


def _descends(pid: int, namespace: int) -> bool:
    """Whether its parent's parent's … is there: a namespace inside the container's."""
    while pid > 1:
        with open(f"/proc/{pid}/stat", "rb") as file:
            pid = int(file.read(1024).rpartition(b") ")[2].split()[1])
        if pid and os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
            return True
    return False


def _numbers(pid: int) -> list[str]:
    """The process's number in each pid namespace that it is in, the outermost first. proc_pid_status(5), NSpid."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as lines:
        return next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
