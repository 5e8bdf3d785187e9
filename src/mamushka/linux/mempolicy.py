"""From which memory nodes a thread's pages come. set_mempolicy(2), include/uapi/linux/mempolicy.h."""

from __future__ import annotations

from mamushka.linux.abi import syscall

MPOL_DEFAULT = 0
MPOL_PREFERRED = 1
MPOL_BIND = 2
MPOL_INTERLEAVE = 3
MPOL_LOCAL = 4
MPOL_PREFERRED_MANY = 5
MPOL_WEIGHTED_INTERLEAVE = 6

MPOL_F_NUMA_BALANCING = 1 << 13
MPOL_F_RELATIVE_NODES = 1 << 14
MPOL_F_STATIC_NODES = 1 << 15


@syscall(x86_64=238, aarch64=237, riscv64=237)
def set_mempolicy(mode: int, nodemask: bytes | None, maxnode: int) -> None:
    """Set the calling thread's policy, which an execve leaves. The kernel reads maxnode - 1 bits. set_mempolicy(2)."""
