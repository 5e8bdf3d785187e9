"""The kernel's keyrings, as far as a container must have its own. keyctl(2)."""

from __future__ import annotations

from mamushka.linux.abi import syscall

KEYCTL_JOIN_SESSION_KEYRING = 1


@syscall(x86_64=250, aarch64=219, riscv64=219)
def keyctl(operation: int, arg2: bytes | None = None, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operate on keys and keyrings. keyctl(2)."""
    raise NotImplementedError
