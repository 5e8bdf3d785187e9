"""Capabilities: the pieces of root's power, as sets of bits. capabilities(7), include/uapi/linux/capability.h.

A set is an int, bit n for capability n; names are the kernel's (``CAP_NET_ADMIN``).
"""

from __future__ import annotations

import sys

from mamushka.linux.abi import s32, struct, syscall, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LINUX_CAPABILITY_VERSION_3 = 0x20080522

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(NAMES)}
ALL = (1 << len(NAMES)) - 1


@struct
class __user_cap_header_struct:
    """Whose capabilities; pid 0 is the calling thread. include/uapi/linux/capability.h."""

    version: u32 = _LINUX_CAPABILITY_VERSION_3
    pid: s32 = 0


@struct
class __user_cap_data_struct:
    """One half of the three sets; version 3 passes two halves. include/uapi/linux/capability.h."""

    effective: u32 = 0
    permitted: u32 = 0
    inheritable: u32 = 0


@syscall(x86_64=125, aarch64=90, riscv64=90)
def capget(header: __user_cap_header_struct, data: bytearray) -> None:
    """Read the three sets of a thread; data holds two __user_cap_data_struct. capget(2)."""


@syscall(x86_64=126, aarch64=91, riscv64=91)
def capset(header: __user_cap_header_struct, data: bytes) -> None:
    """Set the three sets of the calling thread. capset(2)."""


HEADER = __user_cap_header_struct()
_HALF = (1 << 32) - 1
_ORDER = sys.byteorder


def pack(effective: int, permitted: int, inheritable: int) -> bytes:
    """Three sets as capset takes them: low halves of all three, then high halves."""
    low, high = (effective, permitted, inheritable), (effective >> 32, permitted >> 32, inheritable >> 32)
    return b"".join((item & _HALF).to_bytes(4, _ORDER) for item in (*low, *high))


def unpack(data: bytes | bytearray) -> tuple[int, int, int]:
    """The inverse of ``pack``: effective, permitted, inheritable."""
    words = [int.from_bytes(data[at : at + 4], _ORDER) for at in range(0, 24, 4)]
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def current() -> tuple[int, int, int]:
    """Effective, permitted and inheritable set of the calling thread."""
    data = bytearray(24)
    capget(HEADER, data)
    return unpack(data)


def bounding() -> int:
    """The calling process's bounding set: what it and its children can ever have."""
    with open("/proc/thread-self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapBnd:"):
                return int(line[7:], 16)
    raise OSError("/proc/thread-self/status does not tell the bounding set")


def members(bits: int) -> Iterator[int]:
    """The numbers in a set, lowest first."""
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def names(bits: int) -> tuple[str, ...]:
    """The names in a set; a capability newer than this table is ``CAP_41`` and so on."""
    return tuple(NAMES[number] if number < len(NAMES) else f"CAP_{number}" for number in members(bits))


def mask(wanted: Iterable[str]) -> int:
    """The set of these names. KeyError for a name that the table lacks."""
    bits = 0
    for name in wanted:
        bits |= 1 << NUMBERS[name]
    return bits
