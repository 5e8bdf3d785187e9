"""When a process runs and when its disk requests do: sched_setattr(2), ioprio_set(2)."""

from __future__ import annotations

from mamushka.linux.abi import s32, sizeof, struct, syscall, u32, u64

SCHED_NORMAL = 0  # SCHED_OTHER, as the C library has it
SCHED_FIFO = 1
SCHED_RR = 2
SCHED_BATCH = 3
SCHED_IDLE = 5
SCHED_DEADLINE = 6

SCHED_FLAG_RESET_ON_FORK = 0x01
SCHED_FLAG_RECLAIM = 0x02
SCHED_FLAG_DL_OVERRUN = 0x04
SCHED_FLAG_KEEP_POLICY = 0x08
SCHED_FLAG_KEEP_PARAMS = 0x10
SCHED_FLAG_UTIL_CLAMP_MIN = 0x20
SCHED_FLAG_UTIL_CLAMP_MAX = 0x40

IOPRIO_CLASS_RT = 1
IOPRIO_CLASS_BE = 2
IOPRIO_CLASS_IDLE = 3
IOPRIO_CLASS_SHIFT = 13
IOPRIO_NR_LEVELS = 8
IOPRIO_WHO_PROCESS = 1


@struct
class sched_attr:
    """A thread's policy and its parameters; times in nanoseconds. include/uapi/linux/sched/types.h."""

    size: u32 = 0
    sched_policy: u32 = 0
    sched_flags: u64 = 0
    sched_nice: s32 = 0
    sched_priority: u32 = 0
    sched_runtime: u64 = 0
    sched_deadline: u64 = 0
    sched_period: u64 = 0
    sched_util_min: u32 = 0
    sched_util_max: u32 = 0


SCHED_ATTR_SIZE = sizeof(sched_attr)


@syscall(x86_64=314, aarch64=274, riscv64=274)
def sched_setattr(pid: int, attr: sched_attr, flags: int) -> None:
    """Set a thread's policy; pid 0 is the caller. sched_setattr(2), Linux 3.14."""


@syscall(x86_64=251, aarch64=30, riscv64=30)
def ioprio_set(which: int, who: int, ioprio: int) -> None:
    """Set the class and level of disk requests, class << 13 | level. ioprio_set(2)."""
