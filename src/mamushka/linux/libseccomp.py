"""libseccomp, for the one thing that only it has: every system call's number on every architecture.

An installed libseccomp is often older than the kernel, so the newest calls are added here.
"""

from __future__ import annotations

from mamushka.linux.abi import struct, u32
from mamushka.linux.libraries import LIBSECCOMP, pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.abi import s32

# /usr/include/seccomp.h, scmp_arch tokens: the kernel's AUDIT_ARCH_…, and one of libseccomp's own for x32.
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
    "SCMP_ARCH_M68K": 0x00000004,
    "SCMP_ARCH_SH": 0x4000002A,
    "SCMP_ARCH_SHEB": 0x0000002A,
}  # fmt: skip
# The same machine at 64 bits with short pointers: x86-64's calls, each number with this bit.
X32_BIT = 0x40000000

UNKNOWN = -1  # __NR_SCMP_ERROR
# Stand-ins for calls that an architecture has only, or also, behind another: socketcall's and ipc's first argument
# is the distance below. seccomp.h, __PNR_socket and following, __PNR_semop and following.
MULTIPLEXED = {"socketcall": (-100, range(-120, -100)), "ipc": (-200, range(-224, -200))}

# Calls that the libseccomp of long-lived distributions (2.5.4, 2022) does not know. From 424 on a call has the same
# number everywhere. arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
NEWER = {
    "set_mempolicy_home_node": 450, "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454,
    "futex_wait": 455, "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464,
    "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip
# Calls of one machine only.
_NEWER_OF = {
    (ARCHITECTURES["SCMP_ARCH_X86_64"], "uretprobe"): 335,
    (ARCHITECTURES["SCMP_ARCH_RISCV64"], "riscv_hwprobe"): 258,
}
# Multiplexed calls that i386 has had of their own since Linux 4.3 and 5.1. arch/x86/entry/syscalls/syscall_32.tbl.
_DIRECT_X86 = {
    "socket": 359, "socketpair": 360, "bind": 361, "connect": 362, "listen": 363, "accept4": 364, "getsockopt": 365,
    "setsockopt": 366, "getsockname": 367, "getpeername": 368, "sendto": 369, "sendmsg": 370, "recvfrom": 371,
    "recvmsg": 372, "shutdown": 373, "recvmmsg": 337, "sendmmsg": 345, "semget": 393, "semctl": 394, "shmget": 395,
    "shmctl": 396, "shmat": 397, "shmdt": 398, "msgget": 399, "msgsnd": 400, "msgrcv": 401, "msgctl": 402,
}  # fmt: skip


@struct
class scmp_version:
    """The library's version. seccomp.h."""

    major: u32 = 0
    minor: u32 = 0
    micro: u32 = 0


@LIBSECCOMP.function
def seccomp_syscall_resolve_name_arch(arch_token: u32, name: bytes) -> s32:
    """A call's number; -1 for an unknown name, below it a stand-in for a call that other architectures have."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_arch_native() -> u32:
    """The token of the machine that runs."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_version() -> pointer:
    """Where a struct scmp_version lies."""
    raise NotImplementedError


def version() -> str:
    """The library's version, as 2.5.4."""
    found = scmp_version.from_address(seccomp_version())  # type: ignore[attr-defined]
    return f"{found.major}.{found.minor}.{found.micro}"


def numbers(token: int, name: str) -> tuple[int, int]:
    """A call's own number and its stand-in, each negative where an architecture has none."""
    number = seccomp_syscall_resolve_name_arch(token, name.encode())
    if number >= 0:
        return number, UNKNOWN
    if number < UNKNOWN:
        direct = _DIRECT_X86.get(name, UNKNOWN) if token == ARCHITECTURES["SCMP_ARCH_X86"] else UNKNOWN
        return direct, number
    number = NEWER.get(name, UNKNOWN)
    if number >= 0 and token == ARCHITECTURES["SCMP_ARCH_X32"]:
        number |= X32_BIT
    return _NEWER_OF.get((token, name), number), UNKNOWN
