"""Making the process that becomes a container: one clone3 into new namespaces, then the script's executable.

The child shares the caller's memory until it is that program (``linux/vfork.py``), so it costs the same however large
the caller is, and however many threads it has. Some things need more than that:

  - a namespace of pids is joined by the caller's next children only, which can be taken back;
  - one of users or of clocks cannot be left again, and none by who is not the host's root: a forked helper of one
    thread enters, and clones with CLONE_PARENT, so that the new process is the caller's own child;
  - with ids of its own the process must have become their root before it executes anything, or it loses its
    capabilities there: a forked child waits for its ids, takes them, and then executes the script;
  - a cgroup that may not be cloned into, but systemd may move somebody into: the helper is moved, and clones there;
  - a caller with more threads, whose locks a forked child would inherit locked, forks through the helper.
"""

from __future__ import annotations

import os

from mamushka.container import channel
from mamushka.container.namespaces import set_time_offsets
from mamushka.errors import Unsupported
from mamushka.linux import vfork
from mamushka.linux.process import (
    CLONE_CLEAR_SIGHAND,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_PARENT,
    PR_SET_DUMPABLE,
    clone3,
    initial,
    prctl,
    setns,
    threads,
    unshare,
)
from mamushka.linux.script import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from mamushka.linux.script import Script
    from mamushka.spec.runtime import TimeOffset
    from mamushka.values import EMPTY
else:
    from mamushka.values import EMPTY


class Birth:
    """How a process is to be born, and what it is to do.

    ``channel`` is its end of the line, ``peer`` the builder's. ``first`` is written by a forked child that is to have
    ids of its own; where there are none, the script does it.
    """

    __slots__ = ("adopt", "born", "cgroup", "channel", "clocks", "first", "flags", "offsets", "peer", "script", "users")

    def __init__(
        self,
        script: Script,
        channel: int,
        peer: int,
        first: Sequence[tuple[int | bytes, bytes]],
        *,
        flags: int,
        born: Sequence[tuple[int, int, str]] = (),
        offsets: Mapping[str, TimeOffset] = EMPTY,
        cgroup: int = -1,
        adopt: Callable[[int], None] | None = None,
    ) -> None:
        self.script, self.channel, self.peer, self.first = script, channel, peer, first
        self.flags = flags | CLONE_CLEAR_SIGHAND
        self.born, self.offsets, self.adopt = born, offsets, adopt
        self.cgroup = -1 if adopt else cgroup
        joined = {flag for _, flag, _ in born}
        self.users = bool(flags & CLONE_NEWUSER or CLONE_NEWUSER in joined)
        # Before Linux 6.3 nobody in other clocks may share the memory of those who are not.
        self.clocks = bool(flags & CLONE_NEWTIME or CLONE_NEWTIME in joined)

    def give(self, known: Callable[[int], None]) -> tuple[int, int]:
        """Make the process: (pid, pidfd). In a new user namespace it waits until ``known(pid)`` has given it ids."""
        executable = self._executable()
        try:
            # Whoever is not the host's root is not let back into the host's namespace of pids either.
            lasting = not initial() and bool(self.born)
            entered = self.offsets or lasting or any(flag != CLONE_NEWPID for _, flag, _ in self.born)
            if entered or self.adopt or (not self._shares() and threads() > 1):
                pid, pidfd = self._through_helper(executable)
            elif self.born:
                pid, pidfd = self._among_others(executable, self.born[0][0])
            else:
                pid, pidfd = self._clone(executable, self.flags)
        finally:
            os.close(executable)
        if self.flags & CLONE_NEWUSER:
            try:
                known(pid)
            except BaseException:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                os.close(pidfd)
                raise
            channel.go(self.peer, pid)
        return pid, pidfd

    def _executable(self) -> int:
        try:
            return self.script.executable("mamushka-init")
        except KeyError as error:
            raise Unsupported(f"there are no containers on the machine {error.args[0]!r} yet") from error
        except PermissionError as error:
            raise Unsupported(
                f"cannot execute a memory file, which every container begins as: {error.strerror}",
                hint="sysctl vm.memfd_noexec=1",
            ) from error

    def _shares(self) -> bool:
        """Whether the child can share this process's memory; else it is forked."""
        return not self.users and not self.clocks and vfork.possible()

    def _clone(self, executable: int, flags: int) -> tuple[int, int]:
        if self._shares():
            return vfork.spawn(executable, self.script.descriptors, flags, cgroup=self.cgroup)
        pid, pidfd = clone3(flags, cgroup=self.cgroup)
        if pid == 0:
            self._become(executable)
        return pid, pidfd

    def _become(self, executable: int) -> NoReturn:
        """In a forked child: take the ids, if there are some to take, and execute the script."""
        try:
            os.close(self.peer)  # or the end of file would never come
            if self.flags & CLONE_NEWUSER and os.read(self.channel, channel.PACKET_MAX)[:1] != channel.GO:
                os._exit(126)
            if self.users:
                for place, text in self.first:
                    write(place, text)
                _drop_groups()
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            for descriptor in self.script.descriptors:
                os.set_inheritable(descriptor, True)
            os.execve(executable, ["mamushka-init"], {})
        except BaseException as error:
            os.write(self.channel, _told(error))
        finally:
            os._exit(126)

    def _among_others(self, executable: int, namespace: int) -> tuple[int, int]:
        """In another pid namespace."""
        own = os.open("/proc/thread-self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(namespace, CLONE_NEWPID)
            try:
                return self._clone(executable, self.flags)
            finally:
                setns(own, CLONE_NEWPID)
        finally:
            os.close(own)

    def _through_helper(self, executable: int) -> tuple[int, int]:
        ours, theirs = channel.pair()
        helper = os.fork()
        if helper == 0:
            os.close(ours)
            self._help(executable, theirs)
        os.close(theirs)
        try:
            if self.adopt:
                self.adopt(helper)
                channel.go(ours, helper)
            answer = os.read(ours, channel.PACKET_MAX)
        finally:
            os.close(ours)
            os.waitpid(helper, 0)
        if answer[:1] == channel.FAILED:
            from mamushka.linux.script import parse

            number, _, operation, text = parse(answer)
            raise OSError(number, f"cannot {operation}: {text}")
        pid = int(answer)
        # Nobody but this process can reap it, so the number still is that process.
        return pid, os.pidfd_open(pid)

    def _hide(self) -> None:
        """Before it joins users of whom some may trace others: nobody can look into this copy of the caller.

        What is written below /proc is written now: from now on its files there are not its own any more.
        """
        for place, text in self.first:
            if not isinstance(place, int):
                write(place, text)
        self.first = [entry for entry in self.first if isinstance(entry[0], int)]
        prctl(PR_SET_DUMPABLE, 0)

    def _help(self, executable: int, answer: int) -> NoReturn:
        try:
            if self.adopt and os.read(answer, channel.PACKET_MAX)[:1] != channel.GO:
                os._exit(126)
            if self.users:
                self._hide()
            elif not initial() and not self.offsets:
                prctl(PR_SET_DUMPABLE, 0)  # an ordinary user's containers have the very users that this process has
            for descriptor, flag, _ in self.born:
                setns(descriptor, flag)
            flags = self.flags | CLONE_PARENT
            if self.offsets:
                # Clocks can be set only as long as nobody lives in the namespace.
                unshare(CLONE_NEWTIME)
                set_time_offsets(self.offsets)
                flags &= ~CLONE_NEWTIME
            pid, _ = self._clone(executable, flags)
            os.write(answer, b"%d" % pid)
        except BaseException as error:
            os.write(answer, _told(error))
        finally:
            os._exit(0)


def _drop_groups() -> None:
    """What the caller is a member of. Root of a namespace whose map an ordinary user wrote may not, and keeps it."""
    try:
        os.setgroups([])
    except PermissionError:  # setgroups is denied: user_namespaces(7). Nothing may be imported or opened here.
        pass


def _told(error: BaseException) -> bytes:
    """What a forked child says of what it could not do."""
    number, text = (error.errno or 0, error.strerror or "") if isinstance(error, OSError) else (0, repr(error))
    return failure(number, "\0enter the namespaces", f"={text}")


def write(place: int | bytes, text: bytes) -> None:
    """Write to a descriptor, or to a file below /proc."""
    if isinstance(place, int):
        os.write(place, text)
    else:
        from mamushka.linux import procfs

        procfs.write(os.fsdecode(place), text)
