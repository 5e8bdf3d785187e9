"""Making the process that becomes a container: one clone3, or one through a helper where the kernel wants it.

A namespace of pids, of users or of clocks is entered by being born in it. Joining a pid namespace for one child can
be taken back; for the others, or where the caller has more threads (whose locks the child would inherit
locked), a forked helper of one thread enters and clones with CLONE_PARENT. Either way the new process is the
caller's own child.
"""

from __future__ import annotations

import gc
import os

from mamushka.container import channel
from mamushka.container.namespaces import set_time_offsets
from mamushka.linux.process import (
    CLONE_CLEAR_SIGHAND,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_PARENT,
    clone3,
    setns,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.container.operation import Inside, Site
    from mamushka.spec.runtime import TimeOffset
    from mamushka.values import EMPTY
else:
    from mamushka.values import EMPTY


class Birth:
    """How a process is to be born."""

    __slots__ = ("born", "cgroup", "flags", "offsets", "operations", "site")

    def __init__(
        self,
        site: Site,
        operations: Sequence[Inside],
        *,
        flags: int,
        born: Sequence[tuple[int, int, str]] = (),
        offsets: Mapping[str, TimeOffset] = EMPTY,
        cgroup: int = -1,
    ) -> None:
        self.site, self.operations = site, operations
        self.flags = flags | CLONE_CLEAR_SIGHAND
        self.born, self.offsets, self.cgroup = born, offsets, cgroup

    def give(self) -> tuple[int, int]:
        """Make the process: (pid, pidfd). It executes the operations, the last of which does not return."""
        if self.offsets or threads() > 1 or any(flag != CLONE_NEWPID for _, flag, _ in self.born):
            return self._through_helper()
        if self.born:
            return self._among_others(self.born[0][0])
        return self._clone()

    def _clone(self) -> tuple[int, int]:
        pid, pidfd = clone3(self.flags, cgroup=self.cgroup)
        if pid == 0:
            perform(self.operations, self.site)
        return pid, pidfd

    def _among_others(self, namespace: int) -> tuple[int, int]:
        """In another pid namespace: joining one moves a process's next children only, and can be taken back."""
        own = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(namespace, CLONE_NEWPID)
            try:
                return self._clone()
            finally:
                setns(own, CLONE_NEWPID)
        finally:
            os.close(own)

    def _through_helper(self) -> tuple[int, int]:
        ours, theirs = channel.pair()
        helper = os.fork()
        if helper == 0:
            self._help(theirs)
        os.close(theirs)
        try:
            answer = os.read(ours, channel.PACKET_MAX)
        finally:
            os.close(ours)
            os.waitpid(helper, 0)
        if answer[:1] == channel.FAILED:
            number, _, operation, text = channel.parse_failure(answer)
            raise OSError(number, f"cannot {operation}: {text}")
        pid = int(answer)
        # Nobody but this process can reap it, so the number still is that process.
        return pid, os.pidfd_open(pid)

    def _help(self, answer: int) -> None:
        try:
            for descriptor, flag, _ in self.born:
                setns(descriptor, flag)
            flags = self.flags | CLONE_PARENT
            if self.offsets:
                # Clocks can be set only as long as nobody lives in the namespace.
                unshare(CLONE_NEWTIME)
                set_time_offsets(self.offsets)
                flags &= ~CLONE_NEWTIME
            pid, _ = clone3(flags, cgroup=self.cgroup)
            if pid == 0:
                os.close(answer)
                perform(self.operations, self.site)
            os.write(answer, b"%d" % pid)
        except BaseException as error:
            os.write(answer, channel.failure(None, error))
        finally:
            os._exit(0)


def threads() -> int:
    """How many threads this process has: the links of the directory that has one directory for each."""
    return os.stat("/proc/self/task").st_nlink - 2


def perform(operations: Sequence[Inside], site: Site) -> None:
    """In the new process: execute one operation after the other; a failure is reported and ends the process."""
    gc.disable()  # a collection would touch, and so copy, every page of the parent's heap
    operation = operations[0]
    try:
        os.close(site.peer)  # or the end of file would never come
        os.umask(0)
        for operation in operations:
            operation.execute()
    except BaseException as error:
        os.write(site.channel, channel.failure(operation, error))
    finally:
        os._exit(1)
