"""The user namespace that this process is in: which ids it has, and what is above it. user_namespaces(7)."""

from __future__ import annotations

import os

from mamushka.linux.abi import IO
from mamushka.linux.process import initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_NSIO = 0xB7


@IO(_NSIO, 0x2)
def NS_GET_PARENT(fd: int) -> int:
    """A descriptor of the namespace above; EPERM where that is out of the caller's sight. ioctl_ns(2)."""
    raise NotImplementedError


@IO(_NSIO, 0x1)
def NS_GET_USERNS(fd: int) -> int:
    """A descriptor of the user namespace that owns this one; EPERM where that is out of sight. ioctl_ns(2)."""
    raise NotImplementedError


def owns_mounts() -> bool:
    """Whether this process's mount namespace belongs to its user namespace, whose root may then mount in it."""
    mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = NS_GET_USERNS(mounts)
    except PermissionError:
        return False
    finally:
        os.close(mounts)
    try:
        return os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino
    finally:
        os.close(owner)


def ranges(kind: str) -> list[tuple[int, int, int]]:
    """(first id here, first id in the namespace above, how many) of ``uid`` or ``gid``."""
    numbers = [int(word) for word in _content(f"{kind}_map").split()]
    return [(numbers[at], numbers[at + 1], numbers[at + 2]) for at in range(0, len(numbers), 3)]


def single() -> bool:
    """Whether there is one id only: who has no subordinate ids is alone in the namespace."""
    return not initial() and sum(size for _, _, size in ranges("uid")) == 1


def has(number: int, mapped: Sequence[tuple[int, int, int]]) -> bool:
    """Whether an id is among the ranges."""
    return any(first <= number < first + size for first, _, size in mapped)


def may_set_groups(pid: int | str = "self") -> bool:
    """Whether setgroups(2) is allowed where a process is now; it is not where an ordinary user wrote the map."""
    return _content("setgroups", pid).strip() != "deny"


def _content(name: str, pid: int | str = "self") -> str:
    with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
        return file.read()
