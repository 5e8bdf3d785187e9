"""Landlock: a process's own list of what it may still do, which nobody can take back.

A ruleset names the rights that it handles: those are denied, but for what its rules allow. landlock(7),
include/uapi/linux/landlock.h, Documentation/userspace-api/landlock.rst. Each version of the interface, its ABI, adds
rights.
"""

from __future__ import annotations

from errno import ENOSYS, EOPNOTSUPP

from mamushka.linux.abi import s32, struct, syscall, u64

LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_RULE_NET_PORT = 2

LANDLOCK_ACCESS_FS_EXECUTE = 1 << 0
LANDLOCK_ACCESS_FS_WRITE_FILE = 1 << 1
LANDLOCK_ACCESS_FS_READ_FILE = 1 << 2
LANDLOCK_ACCESS_FS_READ_DIR = 1 << 3
LANDLOCK_ACCESS_FS_REMOVE_DIR = 1 << 4
LANDLOCK_ACCESS_FS_REMOVE_FILE = 1 << 5
LANDLOCK_ACCESS_FS_MAKE_CHAR = 1 << 6
LANDLOCK_ACCESS_FS_MAKE_DIR = 1 << 7
LANDLOCK_ACCESS_FS_MAKE_REG = 1 << 8
LANDLOCK_ACCESS_FS_MAKE_SOCK = 1 << 9
LANDLOCK_ACCESS_FS_MAKE_FIFO = 1 << 10
LANDLOCK_ACCESS_FS_MAKE_BLOCK = 1 << 11
LANDLOCK_ACCESS_FS_MAKE_SYM = 1 << 12
LANDLOCK_ACCESS_FS_REFER = 1 << 13
LANDLOCK_ACCESS_FS_TRUNCATE = 1 << 14
LANDLOCK_ACCESS_FS_IOCTL_DEV = 1 << 15
LANDLOCK_ACCESS_NET_BIND_TCP = 1 << 0
LANDLOCK_ACCESS_NET_CONNECT_TCP = 1 << 1
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
LANDLOCK_SCOPE_SIGNAL = 1 << 1
LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF = 1 << 0
LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON = 1 << 1
LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF = 1 << 2

# The kernel's names without their prefixes, each with its bit and the ABI that brought it.
FS = {
    "execute": (LANDLOCK_ACCESS_FS_EXECUTE, 1),
    "write_file": (LANDLOCK_ACCESS_FS_WRITE_FILE, 1),
    "read_file": (LANDLOCK_ACCESS_FS_READ_FILE, 1),
    "read_dir": (LANDLOCK_ACCESS_FS_READ_DIR, 1),
    "remove_dir": (LANDLOCK_ACCESS_FS_REMOVE_DIR, 1),
    "remove_file": (LANDLOCK_ACCESS_FS_REMOVE_FILE, 1),
    "make_char": (LANDLOCK_ACCESS_FS_MAKE_CHAR, 1),
    "make_dir": (LANDLOCK_ACCESS_FS_MAKE_DIR, 1),
    "make_reg": (LANDLOCK_ACCESS_FS_MAKE_REG, 1),
    "make_sock": (LANDLOCK_ACCESS_FS_MAKE_SOCK, 1),
    "make_fifo": (LANDLOCK_ACCESS_FS_MAKE_FIFO, 1),
    "make_block": (LANDLOCK_ACCESS_FS_MAKE_BLOCK, 1),
    "make_sym": (LANDLOCK_ACCESS_FS_MAKE_SYM, 1),
    "refer": (LANDLOCK_ACCESS_FS_REFER, 2),
    "truncate": (LANDLOCK_ACCESS_FS_TRUNCATE, 3),
    "ioctl_dev": (LANDLOCK_ACCESS_FS_IOCTL_DEV, 5),
}
NET = {"bind_tcp": (LANDLOCK_ACCESS_NET_BIND_TCP, 4), "connect_tcp": (LANDLOCK_ACCESS_NET_CONNECT_TCP, 4)}
SCOPE = {
    "abstract_unix_socket": (LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, 6),
    "signal": (LANDLOCK_SCOPE_SIGNAL, 6),
}
LOG = {
    "log_same_exec_off": (LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF, 7),
    "log_new_exec_on": (LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON, 7),
    "log_subdomains_off": (LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF, 7),
}
ABI_MAX = 7  # the newest that this table knows
# What a rule for anything but a directory may allow; the kernel refuses the others there.
FILE_RIGHTS = (
    LANDLOCK_ACCESS_FS_EXECUTE
    | LANDLOCK_ACCESS_FS_WRITE_FILE
    | LANDLOCK_ACCESS_FS_READ_FILE
    | LANDLOCK_ACCESS_FS_TRUNCATE
    | LANDLOCK_ACCESS_FS_IOCTL_DEV
)


@struct
class landlock_ruleset_attr:
    """What a ruleset handles. Older kernels take fewer fields, if what is beyond them is zero."""

    handled_access_fs: u64 = 0
    handled_access_net: u64 = 0
    scoped: u64 = 0


@struct
class landlock_path_beneath_attr:
    """What is allowed at and below what ``parent_fd`` names."""

    _pack_ = 1
    allowed_access: u64
    parent_fd: s32


@struct
class landlock_net_port_attr:
    """What is allowed with a TCP port; in the host's byte order."""

    allowed_access: u64
    port: u64


@syscall(x86_64=444, aarch64=444, riscv64=444)
def landlock_create_ruleset(attr: landlock_ruleset_attr | None, size: int, flags: int) -> int:
    """A descriptor of a new ruleset; with LANDLOCK_CREATE_RULESET_VERSION the kernel's ABI. Linux 5.13."""
    raise NotImplementedError


@syscall(x86_64=445, aarch64=445, riscv64=445)
def landlock_add_rule(
    ruleset_fd: int, rule_type: int, attr: landlock_path_beneath_attr | landlock_net_port_attr, flags: int
) -> None:
    """Allow something that the ruleset handles. Linux 5.13."""


@syscall(x86_64=446, aarch64=446, riscv64=446)
def landlock_restrict_self(ruleset_fd: int, flags: int) -> None:
    """Put the ruleset on this thread, for good; it needs no_new_privs or CAP_SYS_ADMIN. Linux 5.13."""


def abi() -> int:
    """The kernel's version of the interface; 0 where it was built or booted without Landlock."""
    try:
        return landlock_create_ruleset(None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (ENOSYS, EOPNOTSUPP):
            return 0
        raise
