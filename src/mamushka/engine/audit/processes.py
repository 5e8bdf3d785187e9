"""Other processes: to be seen, signalled, read, and starved."""

from __future__ import annotations

from mamushka.engine.audit.probe import Probe, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit.attempts import Attempts
    from mamushka.engine.audit.probe import Ground, Seen

_PTRACE_SEIZE = 0x4206
_BOUNDLESS = 1 << 60  # what a limit of memory is where there is none: v1 tells the largest number of pages
_LIMITS = {
    "processes": ("/pids.max", "/pids/pids.max"),
    "memory": ("/memory.max", "/memory/memory.limit_in_bytes"),
    "time": ("/cpu.max", "/cpu/cpu.cfs_quota_us", "/cpu,cpuacct/cpu.cfs_quota_us"),
}


def _outsider(seen: Seen, ground: Ground) -> bool:
    """The number that the host knows the canary by is the canary's here as well."""
    return ground.canaries.argument in seen.content("arguments read")


def _judge_seen(seen: Seen, ground: Ground) -> str:
    return "processes of the host are in /proc" if _outsider(seen, ground) else ""


def _try_list(attempts: Attempts, _: Ground) -> None:
    attempts.list("processes", b"/proc")
    attempts.step("own", "getpid")


def _judge_list(seen: Seen, _: Ground) -> str:
    """The probe's own children have ended by then."""
    found = [name for name in entries(seen.content("processes list")) if name.isdecimal()]
    others = [name for name in found if int(name) != seen.result("own")]
    return f"{len(others)} of another workload's or the host's" if others else ""


def _try_others(attempts: Attempts, ground: Ground) -> None:
    pid = ground.canaries.pid
    attempts.step("signal", "kill", pid, 0)
    with attempts.child():  # with whose end it lets go
        attempts.step("trace", "ptrace", _PTRACE_SEIZE, pid, 0, 0)


def _judge_signal(seen: Seen, ground: Ground) -> str:
    return "processes of the host can be killed" if _outsider(seen, ground) and seen.done("signal") else ""


def _judge_trace(seen: Seen, ground: Ground) -> str:
    return "processes of the host can be traced" if _outsider(seen, ground) and seen.done("trace") else ""


def _try_limits(attempts: Attempts, _: Ground) -> None:
    for paths in _LIMITS.values():
        for path in paths:
            attempts.read(f"limit {path}", f"/sys/fs/cgroup{path}".encode(), 64)


def _unlimited(seen: Seen, ground: Ground, kind: str) -> bool:
    """No file tells a limit: a host without the controller, and a workload that may not see it, have none.

    A machine needs none: its processes are its kernel's, and it has the memory and processors that it was made with.
    """
    if ground.machine:
        return False
    numbers = [seen.number(f"limit {path} read") for path in _LIMITS[kind]]
    return not any(0 <= number < _BOUNDLESS for number in numbers)


def _judge_processes(seen: Seen, ground: Ground) -> str:
    return "as many processes as the host can have" if _unlimited(seen, ground, "processes") else ""


def _judge_memory(seen: Seen, ground: Ground) -> str:
    return "all memory of the host" if _unlimited(seen, ground, "memory") else ""


def _judge_time(seen: Seen, ground: Ground) -> str:
    return "all processors of the host" if _unlimited(seen, ground, "time") else ""


PROBES = (
    Probe(
        "shared",
        "processes",
        20,
        "processes of others",
        "whoever sees them can signal and read those of the same user",
        "no --pid host, no --pid container:NAME",
        _judge_list,
        _try_list,
    ),
    Probe(
        "visible",
        "processes",
        30,
        "processes of the host",
        "what runs there is what to attack",
        "no --pid host",
        _judge_seen,
    ),
    Probe(
        "signal",
        "processes",
        30,
        "signals to the host's processes",
        "whoever ends a guard is not guarded",
        "no --pid host",
        _judge_signal,
        _try_others,
    ),
    Probe(
        "trace",
        "processes",
        40,
        "tracing the host's processes",
        "their memory and their rights are one's own",
        "no --pid host",
        _judge_trace,
    ),
    Probe(
        "process-limit",
        "processes",
        10,
        "no limit of processes",
        "a fork bomb takes the host's with it",
        "--pids-limit N",
        _judge_processes,
        _try_limits,
    ),
    Probe(
        "memory-limit",
        "processes",
        10,
        "no limit of memory",
        "whoever takes all of it chooses who is killed",
        "-m SIZE",
        _judge_memory,
    ),
    Probe(
        "time-limit",
        "processes",
        5,
        "no limit of processor time",
        "others wait",
        "--cpus N",
        _judge_time,
    ),
)
