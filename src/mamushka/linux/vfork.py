"""A child that shares this process's memory for as long as it takes to become another program.

What ``posix_spawn`` does, with namespaces, a cgroup and descriptors to be kept open besides: no page table is copied,
whatever the caller's size, and no lock can be inherited, whatever its other threads hold. Python cannot be the child,
so a few instructions are (``machine/spawn_*.s``); where there are none, or the system lets nothing be executed that
was written, ``spawn`` is not ``possible``, and a fork serves.
"""

from __future__ import annotations

import os
from errno import ENOSYS

from mamushka.linux import foreign
from mamushka.linux.abi import MACHINE, address_of, sizeof, syscall
from mamushka.linux.executable import memory_file
from mamushka.linux.process import CLONE_INTO_CGROUP, CLONE_PARENT, CLONE_PIDFD, CLONE_VM, _pidfd_out, clone_args

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CLONE_VFORK = 0x00004000
PROT_READ = 1
PROT_EXEC = 4
MAP_PRIVATE = 2

_CODES = {
    "x86_64": (
        "4989d0b8b30100000f054885c07401c34d89c4458b6c241841ffcd7815438b7cac1cbe0200000031d2b8480000000f05ebe6418b7c2414"
        "498b34244c89e24d8d54240841b800100000b8420100000f05f7d84189442410bf7f000000b8e70000000f05"
    ),
}
_function: Any = None


@syscall(x86_64=9, aarch64=222, riscv64=222)
def mmap(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """Map memory; its address. mmap(2)."""
    raise NotImplementedError


def possible() -> bool:
    """Whether this machine and system have it; found out once."""
    global _function
    if _function is None:
        _function = _load()
    return bool(_function)


def _load() -> Any:
    if MACHINE not in _CODES:
        return False
    code = bytes.fromhex(_CODES[MACHINE])
    try:
        fd = memory_file("mamushka-spawn", code)
        try:
            address = mmap(0, len(code), PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0)
        finally:
            os.close(fd)
    except OSError:  # a hardened system; what cannot be executed here can be forked
        return False
    kinds = [foreign.c_void_p, foreign.c_size_t, foreign.c_void_p]
    return foreign.function_at(address, foreign.c_long, kinds)


def spawn(
    executable: int, descriptors: Sequence[int], flags: int, *, exit_signal: int = 17, cgroup: int = -1
) -> tuple[int, int]:
    """A child in new namespaces that becomes ``executable``: (pid, pidfd). The calling thread waits until it has.

    ``executable`` and ``descriptors`` are the caller's; in the program the latter are open at the same numbers, beside
    whatever is not close-on-exec. OSError when it cannot be made or executed; then there is no child.
    """
    if not possible():
        raise OSError(ENOSYS, "there is no way here to share memory with a child")
    out = _pidfd_out()
    arguments = clone_args(
        flags=flags | CLONE_PIDFD | CLONE_VM | CLONE_VFORK, pidfd=address_of(out), exit_signal=exit_signal
    )
    if cgroup >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    if flags & CLONE_PARENT:  # the new sibling inherits the signal; clone3 refuses another
        arguments.exit_signal = 0
    # argv: the address of "" and a null; then error, executable, how many descriptors, and these; "" at the end
    order = (foreign.c_int32 * (8 + len(descriptors)))()
    address = foreign.addressof(order)
    empty = address + 4 * (7 + len(descriptors))
    order[0], order[1] = empty & 0xFFFFFFFF, empty >> 32
    order[5], order[6] = executable, len(descriptors)
    for place, descriptor in enumerate(descriptors, 7):
        order[place] = descriptor
    pid = _function(address_of(arguments), sizeof(arguments), address)
    if pid < 0:
        raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
    if order[4]:
        if not flags & CLONE_PARENT:
            os.waitpid(pid, 0)
        os.close(out.fd)
        raise OSError(order[4], f"execveat: {os.strerror(order[4])}")
    return pid, out.fd
