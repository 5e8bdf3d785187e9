"""The kernel's keyrings, as far as a container must have its own. keyctl(2)."""

from __future__ import annotations

from mamushka.linux.abi import syscall

KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
KEY_SPEC_SESSION_KEYRING = -3
# What a new session keyring has: all for whoever possesses it; viewing, reading and linking for its user.
KEY_SESSION_DEFAULT = 0x3F130000
KEY_USR_SEARCH = 0x080000


@syscall(x86_64=250, aarch64=219, riscv64=219)
def keyctl(operation: int, arg2: bytes | None = None, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operate on keys and keyrings. keyctl(2)."""
    raise NotImplementedError
