"""The wall around the monitor itself: what holds a guest that has broken out of its machine.

A guest reaches the monitor through devices; if one of them has a hole, the guest's next step is whatever the monitor
may do. So before the first instruction runs, it may do next to nothing. Everything that it will need is imported and
open by then. The process is closed first, while it has one thread and the others inherit it:

    namespaces   mounts, network, ipc and names of its own; what was opened in another network stays connected to it
    root         an empty file system that cannot be written; no path leads anywhere
    Landlock     no path, no port but that of names, no abstract socket, no signal to anybody else, where it exists
    privileges   no capability, now or ever again (bounding set, no_new_privs)
    limits       no core, no further descriptors than a busy machine has, no priority
    dumpable     off: nobody of the same user attaches or reads its memory

Then each thread closes its own filter of system calls (filters.py) behind itself, the kind of thread deciding which. A
call that is not listed ends the whole process, and with it the machine. Imports are refused before they would reach the
kernel, so that one that was forgotten is an error that can be read.
"""

from __future__ import annotations

import os
import sys
from errno import EINVAL

from mamushka import trace
from mamushka.linux import capabilities, landlock, mount, tmpfs
from mamushka.linux.abi import sizeof
from mamushka.linux.process import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    prctl,
    unshare,
)
from mamushka.linux.rlimit import NUMBERS, prlimit64, rlimit64
from mamushka.machine import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.linux.seccomp import Filter

# Beyond what is open when the cage closes: connections of the guest's, callers, and their processes' streams.
_DESCRIPTORS_MORE = 4096
_LIMITS = {"RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0, "RLIMIT_NICE": 0, "RLIMIT_RTPRIO": 0}
_CAPABILITIES_MAX = 64  # the sets have no more bits


class Cage:
    """The wall around this process, made of what is looked up while that is still possible."""

    def __init__(self) -> None:
        pid = os.getpid()
        self._filters: dict[str, Filter] = {kind: filters.program(kind, pid) for kind in filters.LISTS}
        self._landlock = landlock.abi()
        self._highest = 0
        self.closed = False

    def close(self, ports: tuple[int, ...] = ()) -> None:
        """Around the whole process, which has one thread: no path and no privilege from now on.

        To these TCP ports it may connect still, with sockets that were made in another network before.
        """
        assert not self.closed
        self._highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        self._leave_namespaces()
        self._empty_root()
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._restrict_paths(ports)
        self._limit()
        self._drop_privileges()
        prctl(PR_SET_DUMPABLE, 0)
        _refuse_imports()
        self.closed = True
        trace.event("cage.closed", landlock=self._landlock, filters=len(self._filters))

    def enter(self, kind: str) -> None:
        """Around the calling thread, by its kind. It can make no thread any more."""
        assert self.closed
        self._filters[kind].install()

    def _leave_namespaces(self) -> None:
        _, permitted, _ = capabilities.current()
        # Whoever is not root here becomes it in a user namespace of his own, which nobody has any ids in.
        own = 0 if permitted >> capabilities.NUMBERS["CAP_SYS_ADMIN"] & 1 else CLONE_NEWUSER
        unshare(own | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)

    def _empty_root(self) -> None:
        """Pivot into an empty tmpfs, attached over a directory that every host has; the old root goes at once."""
        mount.mount(None, b"/", None, mount.MS_REC | mount.MS_PRIVATE, None)
        attributes = (
            mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
        )
        tree = tmpfs.detached(((b"size", b"4k"),), attributes)
        try:
            mount.attach(tree, b"/proc")
            os.fchdir(tree)
        finally:
            os.close(tree)
        mount.pivot_root(b".", b".")
        mount.umount2(b".", mount.MNT_DETACH)
        os.chdir("/")

    def _restrict_paths(self, ports: tuple[int, ...]) -> None:
        abi = self._landlock
        if not abi:
            return
        ruleset = landlock.landlock_ruleset_attr(
            handled_access_fs=_rights(landlock.FS, abi),
            handled_access_net=_rights(landlock.NET, abi),
            scoped=_rights(landlock.SCOPE, abi),
        )
        fd = landlock.landlock_create_ruleset(ruleset, sizeof(ruleset), 0)
        try:
            for port in ports if ruleset.handled_access_net else ():
                allowed = landlock.landlock_net_port_attr(
                    allowed_access=landlock.LANDLOCK_ACCESS_NET_CONNECT_TCP, port=port
                )
                landlock.landlock_add_rule(fd, landlock.LANDLOCK_RULE_NET_PORT, allowed, 0)
            landlock.landlock_restrict_self(fd, 0)
        finally:
            os.close(fd)

    def _limit(self) -> None:
        limits = {**_LIMITS, "RLIMIT_NOFILE": self._highest + _DESCRIPTORS_MORE}
        for name, most in limits.items():
            now = rlimit64(rlim_cur=0, rlim_max=0)
            prlimit64(0, NUMBERS[name], None, now)
            most = min(most, now.rlim_max)
            prlimit64(0, NUMBERS[name], rlimit64(rlim_cur=most, rlim_max=most), None)

    def _drop_privileges(self) -> None:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(_CAPABILITIES_MAX):
            try:
                prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                break  # this kernel has no more
        capabilities.capset(capabilities.HEADER, capabilities.pack(0, 0, 0))


def _rights(table: Mapping[str, tuple[int, int]], abi: int) -> int:
    """All rights of a kind that a kernel of this version knows."""
    return sum(right for right, since in table.values() if since <= abi)


def _refuse_imports() -> None:
    """What is not imported by now cannot be: the path is gone, and to look for it would end the process."""
    sys.meta_path[:] = []
    sys.path_hooks[:] = []
    sys.path[:] = []
