"""Which CPUs a further process runs on. runtime-spec, config.md#linux-process, execCPUAffinity.

``initial`` holds for the process that makes it, and so until the new one is in its cgroup; ``final`` from then on.
Entering a cgroup may or may not move a process, so without ``final`` it is let go to all that its cgroup has.
"""

from __future__ import annotations

import os

from mamushka.container.operation import Inside
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.linux.script import Script

# More than any kernel is built for: CONFIG_NR_CPUS ends at 8192.
_CPUS_MAX = 8192


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list as the kernel writes it: "0-3,7"."""
    return number_list(text, "CPUs", _CPUS_MAX)


def number_list(text: str, what: str, end: int) -> frozenset[int]:
    """The numbers below ``end`` in a list as the kernel writes it; ``what`` they are is said where it is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(word.isascii() and word.isdigit() and len(word) <= 4 and int(word) < end for word in ends):
            raise Invalid(f"{text!r} is not a list of {what}", hint="write numbers and ranges: 0-3,7")
        if int(ends[0]) > int(ends[1]):
            raise Invalid(f"the range {part.strip()} of {what} ends before it starts")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return frozenset(found)


class RunOn(Inside):
    """Stay on these CPUs from now on, as far as the cgroup has them; ``None`` is all of them."""

    __slots__ = ("cpus",)

    def __init__(self, cpus: frozenset[int] | None) -> None:
        self.cpus: Iterable[int] = range(os.sysconf("SC_NPROCESSORS_CONF")) if cpus is None else cpus

    def describe(self) -> str:
        return f"run on the CPUs {','.join(map(str, sorted(self.cpus)))}"

    def write(self, script: Script) -> None:
        size = _CPUS_MAX // 8
        mask = sum(1 << cpu for cpu in self.cpus).to_bytes(size, "little")
        script.call("sched_setaffinity", 0, size, script.place(mask))


class Moved:
    """The caller on other CPUs, and so whom it makes; back where it was afterwards."""

    __slots__ = ("_before", "_cpus")

    def __init__(self, cpus: frozenset[int]) -> None:
        self._cpus = cpus

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self._cpus)
        except OSError as error:
            names = ",".join(map(str, sorted(self._cpus)))
            raise Invalid(f"cannot start a process on the CPUs {names}: none of them is to be had") from error

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)
