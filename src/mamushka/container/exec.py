"""A further process in a running container: into its cgroup, its namespaces, behind its filter."""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container import channel
from mamushka.container.failure import explain
from mamushka.container.namespaces import FLAGS, BecomeRoot
from mamushka.container.operation import Inside, Site
from mamushka.container.plan import check_process, further_process
from mamushka.container.privileges import prepare
from mamushka.container.program import Prepare
from mamushka.container.spawn import Birth
from mamushka.errors import MamushkaError
from mamushka.linux.process import CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER, setns
from mamushka.linux.seccomp import Filter
from mamushka.runtime import NotRunning, Started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.affinity import Moved
    from mamushka.container.cgroups.cgroup import Cgroup
    from mamushka.container.record import Kept, Record
    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Process


class JoinContainer(Inside):
    """Enter the container's namespaces, and with its mount namespace its root."""

    __slots__ = ("kinds", "pidfd", "site")

    def __init__(self, site: Site, pidfd: int, kinds: int) -> None:
        self.site, self.pidfd, self.kinds = site, pidfd, kinds

    def describe(self) -> str:
        return "join the container's namespaces"

    def execute(self) -> None:
        setns(self.pidfd, self.kinds)
        self.site.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


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
    own = {namespace.type for namespace in kept.config.linux.namespaces}
    kinds = sum(FLAGS[kind] for kind in own)
    born = [(pidfd, flag, kind) for kind in ("user", "pid", "time") if kind in own for flag in (FLAGS[kind],)]
    user = "user" in own
    site = Site()
    privileges = prepare(process, filter=_filter(record), user_namespace=user)
    entrance = cgroup.entrance()
    directory = cgroup.descriptor()
    site.peer, site.channel = channel.pair()
    enter: list[Inside] = [Prepare(privileges, entrance)]
    enter.append(JoinContainer(site, pidfd, kinds & ~(CLONE_NEWPID | CLONE_NEWTIME | CLONE_NEWUSER)))
    if user:
        enter.append(BecomeRoot())
    moved = _place(process, enter)
    operations = further_process(site, process, stdio, preserve, enter, privileges)
    for operation in operations if trace.listening() else ():
        trace.event("plan.inside", operation=operation.describe())
    pid = new = -1
    try:
        birth = Birth(site, operations, flags=0, born=born, cgroup=directory)
        if moved is None:
            pid, new = birth.give()
        else:
            with moved:
                pid, new = birth.give()
        os.close(site.channel)
        site.channel = -1
        return Started(pid, new, _follow(site.peer, process))
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
        for descriptor in (site.peer, site.channel, directory):
            if descriptor >= 0:
                os.close(descriptor)


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
    except MamushkaError:  # the container has none
        return None


def _follow(peer: int, process: Process) -> int:
    """Until the program runs; the console's descriptor, or -1."""
    console = -1
    while True:
        packet, descriptor = channel.receive(peer)
        if packet[:1] == channel.CONSOLE:
            console = descriptor
        elif packet[:1] == channel.FAILED:
            if console >= 0:
                os.close(console)
            raise explain(packet, process)
        else:
            return console
