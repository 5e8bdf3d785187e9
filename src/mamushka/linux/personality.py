"""Which kernel a process believes to run on. personality(2), include/uapi/linux/personality.h."""

from __future__ import annotations

from mamushka.linux.abi import syscall

PER_LINUX = 0x0000
PER_LINUX32 = 0x0008


@syscall(x86_64=135, aarch64=92, riscv64=92)
def personality(persona: int) -> int:
    """Set the execution domain of the calling thread; the one before. personality(2)."""
    raise NotImplementedError
