"""Resource limits of a process. prlimit(2), include/uapi/asm-generic/resource.h."""

from __future__ import annotations

from mamushka.linux.abi import struct, syscall, u64

NUMBERS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


@struct
class rlimit64:
    """A soft limit and the hard one above it; 2⁶⁴-1 is unlimited. include/uapi/linux/resource.h."""

    rlim_cur: u64
    rlim_max: u64


@syscall(x86_64=302, aarch64=261, riscv64=261)
def prlimit64(pid: int, resource: int, new: rlimit64 | None, old: rlimit64 | None) -> None:
    """Set and get a limit of a process; pid 0 is the caller. prlimit(2)."""
