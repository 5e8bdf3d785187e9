"""Popek and Goldberg's figures for one machine: how much of its work the processor does by itself, and what is left.

Their monitor is efficient when nearly all instructions run without it, and in control when what remains reaches it. So:
how often the guest is left and why, which share of that reaches this process, how many instructions the kernel had to
interpret, how often memory was missing, and what the machine costs in memory that it shares with nobody.

``take`` reads a ``Sample`` (what was counted since the beginning), ``rates`` makes figures of two: a pure function.
"""

from __future__ import annotations

import os
import time

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from mamushka.machine.machine import Machine
    from mamushka.machine.memory import Memory

# Classes of exits by KVM's names for them on x86; what is left of ``exits`` is "other": CPUID, MSRs, debug registers.
CLASSES = (
    ("port", "io_exits"),
    ("mmio", "mmio_exits"),
    ("halt", "halt_exits"),
    ("interrupt", "irq_exits"),  # of the host's, its timer tick among them
    ("window", "irq_window_exits"),  # the guest can take an interrupt now
    ("nmi window", "nmi_window_exits"),
    ("page fault", "pf_taken"),
    ("hypercall", "hypercalls"),
)
OTHER = "other"
_PIECE = 1 << 16  # the kernel gives a page at a time, whatever is asked for


@value
class MemoryUse:
    """Bytes. ``guest_private``: of the guest's memory, what was written and is nobody else's, so what one more clone
    costs. ``guest_pss``: its share of what it uses. ``monitor_pss``: the share of everything else in the process."""

    guest_private: int = 0
    guest_pss: int = 0
    monitor_pss: int = 0


@value
class Sample:
    """What was counted since the machine began. ``counts`` by the executor's names, ``user`` by kinds of Exit."""

    time: float  # seconds, of the monotonic clock
    counts: Mapping[str, int] = EMPTY
    user: Mapping[str, int] = EMPTY
    memory: MemoryUse = MemoryUse()


@value
class Figures:
    """What happened between two samples; rates are per second. A share is between 0 and 1.

    ``user_share`` is the share of exits that reached this process, and Python. ``emulated_share`` is that of
    instructions which the kernel interpreted; None where nobody counted them all (``instructions`` of ``rates``).
    """

    seconds: float
    exits: float
    by_class: Mapping[str, float]
    user: float
    user_by_kind: Mapping[str, float]
    user_share: float
    emulated: float
    emulated_share: float | None
    halts: float
    faults: float  # page faults of the guest's that reached the kernel
    faults_fixed: float  # those that found memory
    interrupts: float  # injected into the guest
    memory: MemoryUse


def take(machine: Machine, *, memory: bool = True, process: str = "self", mappings: int = -1) -> Sample:
    """Count now; from any thread, also while it runs, so values can lie microseconds apart.

    ``memory=False`` leaves out what takes longest, the look through the process's mappings. ``process`` is the one
    that holds the machine's memory; ``mappings`` is its smaps, open, for whoever has no paths any more. OSError where
    /proc is not there.
    """
    user: dict[str, int] = {}
    for counts in machine.exits:
        for name, count in tuple(counts.items()):
            user[name] = user.get(name, 0) + count
    now = time.monotonic()
    use = MemoryUse()
    if memory:
        use = memory_of(machine.memory, process) if mappings < 0 else memory_at(machine.memory, mappings)
    return Sample(now, machine.executor.counts(), user, use)


def glance(machine: Machine, seconds: float = 1.0) -> str:
    """What its virtual CPUs do for so long, in words: whether a guest that is silent works, waits, or does neither."""
    before = take(machine, memory=False)
    time.sleep(seconds)
    now = rates(before, take(machine, memory=False))
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in now.by_class.items() if rate >= 1)
    return f"it is {machine.state} and left {now.exits:.0f} times a second{f' ({said})' if said else ''}"


def document(sample: Sample) -> dict[str, object]:
    """A sample as a document."""
    use = sample.memory
    return {
        "time": sample.time,
        "counts": dict(sample.counts),
        "user": dict(sample.user),
        "memory": [use.guest_private, use.guest_pss, use.monitor_pss],
    }


def sample(found: Mapping[str, Any]) -> Sample:
    """The inverse of ``document``."""
    return Sample(float(found["time"]), found["counts"], found["user"], MemoryUse(*found["memory"]))


def rates(before: Sample, after: Sample, *, instructions: int = 0) -> Figures:
    """Figures for the time between two samples of one machine; ``instructions`` it executed then, where known.

    A counter that went back (the machine was restored in between) counts as zero. Without time between them all
    rates are zero.
    """
    seconds = after.time - before.time
    counts, user = _grown(before.counts, after.counts), _grown(before.user, after.user)

    def rate(count: int) -> float:
        return count / seconds if seconds > 0 else 0.0

    by_class = {name: counts.get(counter, 0) for name, counter in CLASSES}
    exits, reached = counts.get("exits", 0), sum(user.values())
    by_class[OTHER] = max(0, exits - sum(by_class.values()))
    emulated = counts.get("insn_emulation", 0)
    return Figures(
        seconds=seconds,
        exits=rate(exits),
        by_class={name: rate(count) for name, count in by_class.items()},
        user=rate(reached),
        user_by_kind={name: rate(count) for name, count in user.items()},
        # A string instruction is one exit and many accesses, and a kick can come without an exit.
        user_share=min(1.0, reached / exits) if exits else 0.0,
        emulated=rate(emulated),
        emulated_share=min(1.0, emulated / instructions) if instructions > 0 else None,
        halts=rate(counts.get("halt_exits", 0)),
        faults=rate(counts.get("pf_taken", 0)),
        faults_fixed=rate(counts.get("pf_fixed", 0)),
        interrupts=rate(counts.get("irq_injections", 0)),
        memory=after.memory,
    )


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, count - before.get(name, 0)) for name, count in after.items()}


def memory_of(memory: Memory, process: str = "self") -> MemoryUse:
    """What the process that has this memory costs. OSError where /proc is not there."""
    with open(f"/proc/{process}/smaps", "rb") as file:
        return memory_use(file, [(region.hva, region.hva + region.length) for region in memory])


def memory_at(memory: Memory, smaps: int) -> MemoryUse:
    """The same of an open smaps, read from its beginning; it stays the caller's, and one thread uses it."""
    os.lseek(smaps, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(smaps, _PIECE):
        pieces.append(piece)
    return memory_use(b"".join(pieces).splitlines(), [(region.hva, region.hva + region.length) for region in memory])


def memory_use(smaps: Iterable[bytes], ranges: Iterable[tuple[int, int]]) -> MemoryUse:
    """The same from the lines of proc(5)'s smaps; ``ranges`` are the first and the last-but-one address of regions.

    A region's mapping never merges with one of the monitor's: no other is MAP_NORESERVE.
    """
    bounds = tuple(ranges)
    private = guest = monitor = 0
    inside = False
    for line in smaps:
        name, _, rest = line.partition(b" ")
        if not name.endswith(b":"):
            first, _, last = name.partition(b"-")
            start, end = int(first, 16), int(last, 16)
            inside = any(start < high and low < end for low, high in bounds)
        elif name == b"Pss:":
            size = int(rest.split()[0]) * 1024
            guest, monitor = (guest + size, monitor) if inside else (guest, monitor + size)
        elif name == b"Private_Dirty:" and inside:
            private += int(rest.split()[0]) * 1024
    return MemoryUse(private, guest, monitor)
