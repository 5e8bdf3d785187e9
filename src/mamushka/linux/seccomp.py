"""seccomp(2): handing the kernel a filter for system calls. include/uapi/linux/seccomp.h, filter.h.

A filter is a classic BPF program over ``struct seccomp_data``, given here as the bytes of its sock_filter
instructions, eight each.
"""

from __future__ import annotations

import sys
from errno import EFAULT

from mamushka.linux.abi import address_of, struct, syscall, u16, u64

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2

SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_KILL_THREAD = 0x00000000
SECCOMP_RET_TRAP = 0x00030000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_TRACE = 0x7FF00000
SECCOMP_RET_LOG = 0x7FFC0000
SECCOMP_RET_ALLOW = 0x7FFF0000

# The kernel takes at most this many instructions. include/uapi/linux/bpf_common.h, BPF_MAXINSNS.
INSTRUCTIONS_MAX = 4096
INSTRUCTION_SIZE = 8


@struct
class sock_fprog:
    """A program's length in instructions and where it lies. include/uapi/linux/filter.h."""

    len: u16
    filter: u64


@syscall(x86_64=317, aarch64=277, riscv64=277)
def seccomp(operation: int, flags: int, args: sock_fprog | bytearray | None) -> int:
    """Operate on the calling thread's filters. seccomp(2), Linux 3.17."""
    raise NotImplementedError


class Filter:
    """A program of the kernel's size, and with which flags it is to be installed."""

    __slots__ = ("flags", "program")

    def __init__(self, program: bytes, flags: int = 0) -> None:
        count, rest = divmod(len(program), INSTRUCTION_SIZE)
        if rest or not 0 < count <= INSTRUCTIONS_MAX:
            raise ValueError(f"a filter of {len(program)} bytes: the kernel takes 1 to {INSTRUCTIONS_MAX} instructions")
        self.program, self.flags = program, flags

    @property
    def listens(self) -> bool:
        """Whether some calls are answered by whoever holds the descriptor that installing it gives."""
        return bool(self.flags & SECCOMP_FILTER_FLAG_NEW_LISTENER)

    def dump(self) -> bytes:
        """As it can be kept on disk: the flags in four bytes, then the program."""
        return self.flags.to_bytes(4, "little") + self.program

    @staticmethod
    def load(kept: bytes) -> Filter:
        """The inverse of ``dump``."""
        return Filter(kept[4:], int.from_bytes(kept[:4], "little"))

    def install(self) -> int:
        """Filter the calling thread from now on; with NEW_LISTENER the result is the listener's descriptor.

        Needs no_new_privs or CAP_SYS_ADMIN in the caller's user namespace.
        """
        text = bytearray(self.program)
        program = sock_fprog(len=len(text) // INSTRUCTION_SIZE, filter=address_of(text))
        return seccomp(SECCOMP_SET_MODE_FILTER, self.flags, program)


def install(program: bytes, flags: int = 0) -> int:
    """Prepare and install in one go; see Filter."""
    return Filter(program, flags).install()


def flag_available(flag: int) -> bool:
    """Whether this kernel knows a SECCOMP_FILTER_FLAG_…: it reads the filter, of which there is none, only if so."""
    if flag == SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:  # nothing without a listener
        flag |= SECCOMP_FILTER_FLAG_NEW_LISTENER
    try:
        seccomp(SECCOMP_SET_MODE_FILTER, flag, None)
    except OSError as error:
        return error.errno == EFAULT
    return False


def action_available(action: int) -> bool:
    """Whether this kernel knows a SECCOMP_RET_… action; False without seccomp at all."""
    try:
        seccomp(SECCOMP_GET_ACTION_AVAIL, 0, bytearray(action.to_bytes(4, sys.byteorder)))
    except OSError:
        return False
    return True
