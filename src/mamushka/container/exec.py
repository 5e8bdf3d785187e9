"""A further process in a running container: into its cgroup, its namespaces, behind its filter."""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container import channel
from mamushka.container.failure import explain
from mamushka.container.namespaces import FLAGS
from mamushka.container.operation import ROOT, Inside, script_of
from mamushka.container.privileges import keyring_of, prepare
from mamushka.container.process import attributes_of, check_process, further_process, restrictions
from mamushka.container.program import Prepare, first_writes, home
from mamushka.container.spawn import Birth
from mamushka.errors import NotFound
from mamushka.linux.fd import AT_FDCWD
from mamushka.linux.process import CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER, initial
from mamushka.linux.script import CHANNEL, Script
from mamushka.linux.seccomp import Filter
from mamushka.runtime import RUNNING, NotRunning, Started
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.container.affinity import Moved
    from mamushka.container.cgroups.cgroup import Cgroup
    from mamushka.record import Kept, Record
    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Process


class JoinContainer(Inside):
    """Enter the container's namespaces, as far as it was not born in them; with its mount namespace its root."""

    __slots__ = ("kinds", "pidfd")

    def __init__(self, pidfd: int, kinds: int) -> None:
        self.pidfd, self.kinds = pidfd, kinds

    def describe(self) -> str:
        return "join the container's namespaces"

    def write(self, script: Script) -> None:
        if self.kinds:
            script.call("setns", script.descriptor(self.pidfd), self.kinds)
        script.call("openat", AT_FDCWD, b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, into=ROOT)


def further(
    record: Record,
    kept: Kept,
    pidfd: int,
    cgroup: Cgroup,
    process: Process,
    stdio: Stdio,
    preserve: tuple[int, ...],
) -> Started:
    """Start the process; it is the caller's child."""
    check_process(process)
    first_process = kept.config.process
    if process.oom_score_adj is None and first_process:  # never the caller's, who may be exempt
        process = replace(process, oom_score_adj=first_process.oom_score_adj)
    restricted = restrictions(kept.config, process)
    own = {namespace.type for namespace in kept.config.linux.namespaces}
    attributes = attributes_of(process, kept.config.linux)
    born, kinds = entry(pidfd, own)
    keyring = keyring_of(kept.id)
    groups = None
    if "user" in own:
        from mamushka.linux.users import may_set_groups

        try:
            groups = may_set_groups(record.living())
        except OSError:  # it has just ended
            groups = True
    privileges = prepare(process, filter=_filter(record), keyring=keyring, user_namespace="user" in own, groups=groups)
    entrance = cgroup.entrance()
    directory = cgroup.descriptor()
    peer, theirs = channel.pair()
    pid = new = proc = -1
    try:
        entrance.doors += _groups(record, kept)
        if privileges.in_proc():
            from mamushka.linux import procfs

            proc = procfs.open_root()
        first = first_writes(privileges, entrance)
        enter: list[Inside] = [
            Prepare(privileges, () if "user" in own else first, proc),
            JoinContainer(pidfd, kinds),
        ]
        moved = _place(process, enter)
        operations = further_process(process, stdio, preserve, enter, [*attributes, *restricted], privileges)
        for operation in operations if trace.listening() else ():
            trace.event("plan.inside", operation=operation.describe())
        script = Script()
        script.descriptor(theirs, CHANNEL)
        script_of(operations, script)
        birth = Birth(script, theirs, peer, first, flags=0, born=born, cgroup=directory, adopt=cgroup.adoption())
        if moved is None:
            pid, new = birth.give(_has_ids)
        else:
            with moved:
                pid, new = birth.give(_has_ids)
        os.close(theirs)
        theirs = -1
        return Started(pid, new, _follow(peer, process, lambda: _introduce(record, kept, pid, new)))
    except BaseException as error:
        if pid > 0:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(new)
        if isinstance(error, ProcessLookupError):  # the container's first process is ending, and has no namespaces
            raise NotRunning(f"container not running: {error}") from error
        raise
    finally:
        entrance.close()
        for descriptor in (peer, theirs, directory, proc):
            if descriptor >= 0:
                os.close(descriptor)


def entry(pidfd: int, own: set[str]) -> tuple[list[tuple[int, int, str]], int]:
    """(The namespaces that it is born in, in order; those that it enters itself.)

    Whoever has CAP_SYS_PTRACE in the container's user namespace may look into a process that is in it, and finds it by
    the container's pid namespace. So where there are users of its own, the process is born behind the container's
    mounts already, and never shows it the host's.
    """
    late = CLONE_NEWPID | CLONE_NEWTIME
    kinds = sum(FLAGS[kind] for kind in own) & ~(late | CLONE_NEWUSER)
    born: list[tuple[int, int, str]] = [(pidfd, FLAGS[kind], kind) for kind in ("pid", "time") if kind in own]
    if "user" in own:
        return [(pidfd, CLONE_NEWUSER, "user"), (pidfd, kinds, "mount"), *born], 0
    # An ordinary user's containers are all in the user namespace that this process is in, too.
    return (born, kinds) if initial() else ([(pidfd, kinds, "mount"), *born], 0)


def _has_ids(_pid: int) -> None:
    """The user namespace that it joins has had them for long."""


def _place(process: Process, enter: list[Inside]) -> Moved | None:
    """Add what keeps it on its CPUs, once it is in its cgroup; and the caller's move before that."""
    asked = process.exec_cpu_affinity
    if asked is None or not (asked.initial or asked.final):
        return None
    from mamushka.container.affinity import Moved, RunOn, cpu_list

    enter.insert(1, RunOn(cpu_list(asked.final) if asked.final else None))
    return Moved(cpu_list(asked.initial)) if asked.initial else None


def _filter(record: Record) -> Filter | None:
    try:
        return Filter.load(record.content("seccomp"))
    except NotFound:  # the container has none
        return None


def _groups(record: Record, kept: Kept) -> tuple[int, ...]:
    """Doors into the container's class of service, if it belongs to one."""
    asked = kept.config.linux.intel_rdt
    if asked is None:
        return ()
    from mamushka.container.resctrl import Group

    return Group(asked, record.id).doors()


def _introduce(record: Record, kept: Kept, pid: int, pidfd: int) -> None:
    """The container's seccomp agent and the new process."""
    from mamushka import hooks
    from mamushka.container.listener import Agent

    assert kept.config.linux.seccomp is not None
    state = hooks.state(kept, RUNNING, record.process()[0])
    Agent(kept.config.linux.seccomp).hand_over(pid, pidfd, kept.config.oci_version, state)


def _follow(peer: int, process: Process, introduce: Callable[[], None]) -> int:
    """Until the program runs; the console's descriptor, or -1."""
    console = -1
    while True:
        packet, descriptor = channel.receive(peer)
        if packet[:1] == channel.CONSOLE:
            console = descriptor
        elif packet[:1] == channel.ACCOUNTS:
            channel.send(peer, home(descriptor, process.user.uid))
        elif packet[:1] == channel.LISTENS:
            introduce()
        elif packet[:1] == channel.FAILED:
            if console >= 0:
                os.close(console)
            raise explain(packet, process)
        else:
            return console
