"""events: what a container uses, again and again, and when the kernel killed in it for want of memory."""

from __future__ import annotations

import os
import select
import sys
import time

from mamushka import document
from mamushka.errors import Conflict
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import runtime
from mamushka.runtime import STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.container.cgroups.oom import OomWatch
    from mamushka.container.cgroups.usage import Amount, Block, Usage
    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.interfaces.oci.lifecycle import Wall

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def events(options: Arguments, given: Arguments, id: str) -> None:
    """Resource use, once with --stats, or at each interval until the container ends; kills at once."""
    wall = runtime(options)
    if wall.state(id).status == STOPPED:
        raise Conflict(f"container with id {id} is not running: container not running")
    interval = seconds(given.get("interval", "5s"))
    if "stats" in given:
        _tell("stats", id, shape(wall.usage(id)))
        return
    if interval <= 0:
        raise UsageError("duration interval must be greater than 0")
    pidfd = wall.open_process(id)
    if pidfd < 0:
        return
    watch = wall.watch_oom(id)
    try:
        _follow(wall, id, interval, pidfd, watch)
    finally:
        if watch:
            watch.close()
        os.close(pidfd)


def _follow(wall: Wall, id: str, interval: float, pidfd: int, watch: OomWatch | None) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if watch:
        poll.register(watch.descriptor, select.POLLIN)
    due = time.monotonic() + interval
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, due - time.monotonic()) * 1000)}
        if watch and watch.descriptor in ready:
            for _ in range(watch.kills()):
                _tell("oom", id)
        if pidfd in ready:
            return
        if time.monotonic() >= due:
            _tell("stats", id, shape(wall.usage(id)))
            due += interval


def _tell(kind: str, id: str, content: dict[str, Any] | None = None) -> None:
    line = {"type": kind, "id": id}
    sys.stdout.write(document.dump({**line, "data": content} if content is not None else line).decode() + "\n")
    sys.stdout.flush()


def seconds(text: str) -> float:
    """A duration as Go writes it: 5s, 1m30s, 250ms; a bare number is seconds."""
    total, digits, unit = 0.0, "", ""
    try:
        for letter in text + "\0":
            if unit and (letter.isdigit() or letter in ".\0"):
                total += float(digits) * _UNITS[unit]
                digits = unit = ""
            if letter.isdigit() or letter == ".":
                digits += letter
            else:
                unit += letter.strip("\0")
        return total + (float(digits) if digits else 0.0)
    except (KeyError, ValueError):
        raise UsageError(f"--interval takes a duration, as 5s or 250ms, not {text!r}") from None


def shape(found: Usage) -> dict[str, Any]:
    """In runc's shape, types/events.go: nanoseconds, bytes and counts; what its tags leave out at zero is left out."""
    pressure = {name: {"psi": found.pressure[name]} if name in found.pressure else {} for name in _PRESSURE}
    cpu = found.cpu
    usage = _filled(total=cpu.total, percpu=cpu.each, percpu_kernel=cpu.each_kernel, percpu_user=cpu.each_user)
    throttling = _filled(periods=cpu.periods, throttledPeriods=cpu.throttled_periods, throttledTime=cpu.throttled)
    return {
        "cpu": {
            "usage": {**usage, "kernel": cpu.kernel, "user": cpu.user},
            "throttling": throttling,
            **pressure["cpu"],
        },
        "cpuset": {
            **_filled(cpus=found.cpus),
            "cpu_exclusive": 0,
            **_filled(mems=found.nodes),
            **dict.fromkeys(_SWITCHES, 0),
            **found.switches,
        },
        "memory": {
            **_filled(cache=found.cache),
            "usage": _amount(found.memory),
            "swap": _amount(found.swap),
            "kernel": _amount(found.kernel),
            "kernelTCP": _amount(found.kernel_tcp),
            **_filled(raw=dict(found.raw)),
            **pressure["memory"],
        },
        "pids": _filled(current=found.pids, limit=found.pids_limit),
        "blkio": {
            **_filled(ioServiceBytesRecursive=_blocks(found.io), ioServicedRecursive=_blocks(found.operations)),
            **pressure["io"],
        },
        "hugetlb": {size: _huge(amount) for size, amount in found.huge.items()},
        "intel_rdt": {},
        "network_interfaces": None,
    }


_PRESSURE = ("cpu", "memory", "io")
_SWITCHES = (
    "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab", "memory_pressure",
    "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip


def _filled(**entries: Any) -> dict[str, Any]:
    return {name: entry for name, entry in entries.items() if entry}


def _amount(amount: Amount) -> dict[str, int]:
    return {"limit": amount.limit, **_filled(usage=amount.usage, max=amount.peak), "failcnt": amount.failures}


def _huge(amount: Amount) -> dict[str, int]:
    return {**_filled(usage=amount.usage, max=amount.peak), "failcnt": amount.failures}


def _blocks(found: tuple[Block, ...]) -> list[dict[str, Any]]:
    return [{**_filled(major=major, minor=minor, op=op), **_filled(value=count)} for major, minor, op, count in found]
