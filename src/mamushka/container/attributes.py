"""What a process is to the kernel besides its rights: when it runs, where its memory lies, which kernel it sees.

They are set as late as can be while the process may still set them: hooks and the runtime's own work go by the
caller's scheduler, and what would need CAP_SYS_NICE afterwards is done before the capabilities go.
runtime-spec, config.md#linux-process (scheduler, ioPriority) and config-linux.md#memory-policy, #personality.
"""

from __future__ import annotations

from mamushka.container.affinity import number_list
from mamushka.container.operation import Inside
from mamushka.errors import Invalid, Unsupported
from mamushka.linux import mempolicy, scheduler
from mamushka.linux.personality import PER_LINUX, PER_LINUX32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.linux.script import Script
    from mamushka.spec.runtime import IOPriority, Linux, MemoryPolicy, Personality, Process, Scheduler

_POLICIES = {
    "SCHED_OTHER": scheduler.SCHED_NORMAL,
    "SCHED_FIFO": scheduler.SCHED_FIFO,
    "SCHED_RR": scheduler.SCHED_RR,
    "SCHED_BATCH": scheduler.SCHED_BATCH,
    "SCHED_IDLE": scheduler.SCHED_IDLE,
    "SCHED_DEADLINE": scheduler.SCHED_DEADLINE,
}
_REALTIME = ("SCHED_FIFO", "SCHED_RR")
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": scheduler.SCHED_FLAG_RESET_ON_FORK,
    "SCHED_FLAG_RECLAIM": scheduler.SCHED_FLAG_RECLAIM,
    "SCHED_FLAG_DL_OVERRUN": scheduler.SCHED_FLAG_DL_OVERRUN,
    "SCHED_FLAG_KEEP_POLICY": scheduler.SCHED_FLAG_KEEP_POLICY,
    "SCHED_FLAG_KEEP_PARAMS": scheduler.SCHED_FLAG_KEEP_PARAMS,
    "SCHED_FLAG_UTIL_CLAMP_MIN": scheduler.SCHED_FLAG_UTIL_CLAMP_MIN,
    "SCHED_FLAG_UTIL_CLAMP_MAX": scheduler.SCHED_FLAG_UTIL_CLAMP_MAX,
}
_IO_CLASSES = {
    "IOPRIO_CLASS_RT": scheduler.IOPRIO_CLASS_RT,
    "IOPRIO_CLASS_BE": scheduler.IOPRIO_CLASS_BE,
    "IOPRIO_CLASS_IDLE": scheduler.IOPRIO_CLASS_IDLE,
}
MEMORY_MODES = {
    "MPOL_DEFAULT": mempolicy.MPOL_DEFAULT,
    "MPOL_BIND": mempolicy.MPOL_BIND,
    "MPOL_INTERLEAVE": mempolicy.MPOL_INTERLEAVE,
    "MPOL_WEIGHTED_INTERLEAVE": mempolicy.MPOL_WEIGHTED_INTERLEAVE,
    "MPOL_PREFERRED": mempolicy.MPOL_PREFERRED,
    "MPOL_PREFERRED_MANY": mempolicy.MPOL_PREFERRED_MANY,
    "MPOL_LOCAL": mempolicy.MPOL_LOCAL,
}
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": mempolicy.MPOL_F_NUMA_BALANCING,
    "MPOL_F_RELATIVE_NODES": mempolicy.MPOL_F_RELATIVE_NODES,
    "MPOL_F_STATIC_NODES": mempolicy.MPOL_F_STATIC_NODES,
}
_PERSONALITIES = {"LINUX": PER_LINUX, "LINUX32": PER_LINUX32}

# include/linux/numa.h: no kernel is built for more nodes than 2¹⁰.
_NODES_MAX = 1024


def attributes(process: Process, linux: Linux) -> list[Inside]:
    """The operations that set all of it; Invalid or Unsupported for what no kernel takes."""
    found: list[Inside] = []
    if process.scheduler:
        found.append(Schedule(process.scheduler))
    if process.io_priority:
        found.append(RankDiskRequests(process.io_priority))
    if linux.memory_policy:
        found.append(PlaceMemory(linux.memory_policy))
    if linux.personality:
        found.append(Appear(linux.personality))
    return found


class Schedule(Inside):
    """The policy by which the kernel gives it processors, and what that policy needs to know."""

    __slots__ = ("attr", "words")

    def __init__(self, asked: Scheduler) -> None:
        policy = _POLICIES.get(asked.policy)
        if asked.policy == "SCHED_ISO":
            raise Unsupported("cannot schedule by SCHED_ISO: Linux reserves the name and has no such policy")
        if policy is None:
            raise Invalid(f"there is no scheduling policy {asked.policy!r}", hint=f"one of {', '.join(_POLICIES)}")
        self.words = (asked.policy, *asked.flags)
        _check_parameters(asked)
        self.attr = scheduler.sched_attr(
            size=scheduler.SCHED_ATTR_SIZE,
            sched_policy=policy,
            sched_flags=_bits(asked.flags, _SCHEDULER_FLAGS, "scheduling flag"),
            sched_nice=asked.nice,
            sched_priority=asked.priority,
            sched_runtime=asked.runtime,
            sched_deadline=asked.deadline,
            sched_period=asked.period,
        )

    def describe(self) -> str:
        return f"schedule by {' '.join(self.words)}"

    def write(self, script: Script) -> None:
        # CONFIG_RT_GROUP_SCHED: a new cgroup of version 1 has no time for real-time policies.
        hint = ": perhaps resources.cpu.realtimeRuntime is missing" if self.words[0] in _REALTIME else ""
        script.call("sched_setattr", 0, self.attr, 0, about=hint)


def _check_parameters(asked: Scheduler) -> None:
    """sched(7): each policy has parameters of its own, and no other's."""
    realtime = asked.policy in _REALTIME
    if not (1 if realtime else 0) <= asked.priority <= (99 if realtime else 0):
        why = "1 to 99" if realtime else "none, which is 0"
        raise Invalid(f"the priority {asked.priority} is not one of {asked.policy}: it has {why}")
    if not -20 <= asked.nice <= 19:
        raise Invalid(f"the nice value {asked.nice} is outside -20 to 19")
    if asked.policy != "SCHED_DEADLINE":
        if asked.runtime or asked.deadline or asked.period:
            raise Invalid(f"{asked.policy} has no runtime, deadline and period", hint="these are SCHED_DEADLINE's")
    elif not 0 < asked.runtime <= asked.deadline <= (asked.period or asked.deadline):
        raise Invalid(
            f"SCHED_DEADLINE with a runtime of {asked.runtime} ns, a deadline of {asked.deadline} ns and a period of "
            f"{asked.period} ns",
            hint="0 < runtime <= deadline <= period; without a period it is the deadline",
        )


class RankDiskRequests(Inside):
    """The class and level of its disk requests."""

    __slots__ = ("asked", "number")

    def __init__(self, asked: IOPriority) -> None:
        kind = _IO_CLASSES.get(asked.class_)
        if kind is None:
            raise Invalid(f"there is no I/O class {asked.class_!r}", hint=f"one of {', '.join(_IO_CLASSES)}")
        if not 0 <= asked.priority < scheduler.IOPRIO_NR_LEVELS:
            raise Invalid(f"the I/O priority {asked.priority} is outside 0 to {scheduler.IOPRIO_NR_LEVELS - 1}")
        self.asked = asked
        self.number = kind << scheduler.IOPRIO_CLASS_SHIFT | asked.priority

    def describe(self) -> str:
        return f"ionice {self.asked.class_} {self.asked.priority}"

    def write(self, script: Script) -> None:
        script.call("ioprio_set", scheduler.IOPRIO_WHO_PROCESS, 0, self.number)


class PlaceMemory(Inside):
    """From which memory nodes its pages come."""

    __slots__ = ("asked", "mode", "nodes")

    def __init__(self, asked: MemoryPolicy) -> None:
        mode = MEMORY_MODES.get(asked.mode)
        if mode is None:
            raise Invalid(f"there is no memory policy {asked.mode!r}", hint=f"one of {', '.join(MEMORY_MODES)}")
        self.asked = asked
        self.mode = mode | _bits(asked.flags, MEMORY_FLAGS, "memory policy flag")
        self.nodes = number_list(asked.nodes, "memory nodes", _NODES_MAX) if asked.nodes else frozenset()
        self._check()

    def _check(self) -> None:
        """set_mempolicy(2): which modes take nodes, and which flags go together."""
        asked = self.asked
        if asked.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
            if self.nodes or asked.flags:
                raise Invalid(f"the memory policy {asked.mode} has neither nodes nor flags")
        elif not self.nodes and asked.mode != "MPOL_PREFERRED":
            raise Invalid(f"the memory policy {asked.mode} names no nodes", hint="linux.memoryPolicy.nodes: 0-1,3")
        if {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"} <= {*asked.flags}:
            raise Invalid("memory nodes are static or relative, not both")

    def describe(self) -> str:
        return f"take memory by {' '.join((self.asked.mode, *self.asked.flags))} {self.asked.nodes}".rstrip()

    def write(self, script: Script) -> None:
        if not self.nodes:
            script.call("set_mempolicy", self.mode, 0, 0)
            return
        mask = sum(1 << node for node in self.nodes).to_bytes(_NODES_MAX // 8, "little")
        script.call("set_mempolicy", self.mode, script.place(mask), _NODES_MAX + 1, about=f": nodes {self.asked.nodes}")


class Appear(Inside):
    """The kernel that uname(2) tells of."""

    __slots__ = ("asked", "number")

    def __init__(self, asked: Personality) -> None:
        number = _PERSONALITIES.get(asked.domain)
        if number is None:
            raise Invalid(f"there is no personality {asked.domain!r}", hint=f"one of {', '.join(_PERSONALITIES)}")
        if asked.flags:
            raise Unsupported(
                f"the personality asks for {', '.join(asked.flags)}: the specification has no flags yet",
                hint="leave linux.personality.flags out",
            )
        self.asked, self.number = asked, number

    def describe(self) -> str:
        return f"appear as {self.asked.domain}"

    def write(self, script: Script) -> None:
        script.call("personality", self.number)


def _bits(words: Sequence[str], known: Mapping[str, int], what: str) -> int:
    bits = 0
    for word in words:
        if word not in known:
            raise Invalid(f"there is no {what} {word!r}", hint=f"one of {', '.join(known)}")
        bits |= known[word]
    return bits
