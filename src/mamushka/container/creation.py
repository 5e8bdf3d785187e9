"""What creating a container does to the host, as a plan: the record, the cgroup, the process.

On disk first, then in the kernel: whenever the creator is killed, the record names what there may be to remove,
and a process that was not recorded ends by itself (see ``channel``).
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container import channel
from mamushka.container.cgroups.layout import UNIFIED, layout
from mamushka.container.namespaces import map_ids
from mamushka.container.plan import Interior
from mamushka.container.program import home
from mamushka.container.spawn import Birth
from mamushka.linux.process import CLONE_NEWCGROUP, CLONE_NEWNET
from mamushka.runtime import CREATING, Started
from mamushka.spec.runtime import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.cgroups.cgroup import Cgroup
    from mamushka.container.netdevices import Passage
    from mamushka.container.privileges import Privileges
    from mamushka.container.resctrl import Group
    from mamushka.linux.script import Script
    from mamushka.record import Record
    from mamushka.spec.runtime import Config


class MakeCgroup:
    """Make the cgroup with its limits."""

    def __init__(self, cgroup: Cgroup, config: Config, resources: Resources | None) -> None:
        self.cgroup, self.config, self.resources = cgroup, config, resources or Resources()
        self.made = False

    def describe(self) -> str:
        return f"make the cgroup {self.cgroup.place}"

    def execute(self) -> None:
        self.cgroup.create(self.resources)
        self.made = True
        if layout().kind == UNIFIED:
            from mamushka.container.cgroups import ownership

            uid = ownership.owner(self.config)
            for _, directory in self.cgroup.paths() if uid > 0 else ():
                ownership.give(directory, uid)

    def undo(self) -> None:
        if self.made:
            self.cgroup.kill()
            self.cgroup.remove()


def _script(interior: Interior, channel: int, gate: int, outcome: int) -> Script:
    global _latest
    if _latest is not interior.config:
        _latest = interior.config
        return interior.script(channel, gate, outcome)
    from mamushka.container import mold

    return mold.script(interior, channel, gate, outcome)


_latest: Config | None = None  # what the latest container was made from; see mold.py


class JoinGroup:
    """Make the class of service that the container is to belong to, or find it."""

    def __init__(self, group: Group, record: Record) -> None:
        self.group, self.record = group, record

    def describe(self) -> str:
        return f"have the class of service {self.group.path}"

    def execute(self) -> None:
        self.record.keep_groups(self.group.own)
        self.group.make()

    def undo(self) -> None:
        self.group.unmake()


class BearInit:
    """Make the container's first process and follow it until its program runs, or it waits for start."""

    def __init__(
        self,
        interior: Interior,
        record: Record,
        cgroup: Cgroup,
        privileges: Privileges,
        root: int,
        preserve: tuple[int, ...],
        seccomp: bytes,
    ) -> None:
        self.seccomp = seccomp
        self.interior, self.record, self.cgroup, self.privileges = interior, record, cgroup, privileges
        self.root, self.preserve = root, preserve
        self.pid = self.pidfd = self.console = self.channel = -1

    @property
    def started(self) -> Started:
        """What the caller gets."""
        return Started(self.pid, self.pidfd, self.console)

    def describe(self) -> str:
        return f"start {self.interior.process.args[0]} in its own namespaces"

    def execute(self) -> None:
        interior = self.interior
        entrance = self.cgroup.entrance()
        ends = []
        try:
            if interior.group is not None:
                entrance.doors += interior.group.doors()
            interior.build(self.root, self.preserve, self.privileges, self.cgroup, entrance)
            for operation in interior.operations if trace.listening() else ():
                trace.event("plan.inside", operation=operation.describe())
            self.channel, theirs = channel.pair()
            ends.append(theirs)
            gate = outcome = -1
            if interior.gated:
                gate, outcome = self.record.make_gate()
                ends += [gate, outcome]
            self._bear(_script(interior, theirs, gate, outcome), theirs)
        finally:
            entrance.close()
            for end in ends:
                os.close(end)
        self.cgroup.settle()
        self._follow()
        if interior.passage is not None:
            interior.passage.settle()
        os.close(self.channel)
        self.channel = -1

    def _bear(self, script: Script, theirs: int) -> None:
        namespaces, linux = self.interior.namespaces, self.interior.config.linux
        directory = self.cgroup.descriptor()
        try:
            birth = Birth(
                script,
                theirs,
                self.channel,
                self.interior.first,
                # The cgroup namespace's root is where the process is when it is made: it unshares it later.
                flags=namespaces.new & ~CLONE_NEWCGROUP,
                born=namespaces.born,
                offsets=linux.time_offsets,
                cgroup=directory,
                adopt=self.cgroup.adoption(),
            )
            self.pid, self.pidfd = birth.give(lambda pid: map_ids(pid, linux.uid_mappings, linux.gid_mappings))
        finally:
            if directory >= 0:
                os.close(directory)

    def _follow(self) -> None:
        trace.event("container.born", pid=self.pid)
        # Here and not earlier: the process builds the container meanwhile.
        self.record.keep(self.interior.kept, self.seccomp)
        self.record.keep_process(self.pid)
        trace.event("container.recorded", pid=self.pid)
        if self.interior.passage is not None:
            self._move_devices(self.interior.passage)
        channel.go(self.channel, self.pid)
        while True:
            packet, descriptor = channel.receive(self.channel)
            if packet[:1] == channel.CONSOLE:
                self.console = descriptor
            elif packet[:1] == channel.ACCOUNTS:
                channel.send(self.channel, home(descriptor, self.interior.process.user.uid))
            elif packet[:1] == channel.HOOKS:
                from mamushka import hooks

                hooks.before(self.interior.kept, self.pid)
                channel.go(self.channel, self.pid)
            elif packet[:1] == channel.LISTENS:
                self._introduce()
            elif packet[:1] == channel.FAILED:
                from mamushka.container.failure import explain

                raise explain(packet, self.interior.process)
            else:  # ready behind the gate, or the end of file: the program runs
                return

    def _move_devices(self, passage: Passage) -> None:
        """Into the network namespace, as soon as there is one, and before any hook looks for them there."""
        namespaces = self.interior.namespaces
        trace.event("container.devices", moves=passage.describe())
        joined = next((descriptor for descriptor, flag, _ in namespaces.joined if flag == CLONE_NEWNET), -1)
        try:
            namespace = joined if joined >= 0 else os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has failed already, and what it said is still to be read
            return
        try:
            passage.move(namespace)
        except OSError as error:
            from mamushka.container.netdevices import explained

            raise explained(error, self.interior.config.linux.net_devices) from error
        finally:
            if joined < 0:
                os.close(namespace)

    def _introduce(self) -> None:
        """The agent and the process that it answers for."""
        from mamushka import hooks
        from mamushka.container.listener import Agent

        kept, seccomp = self.interior.kept, self.interior.config.linux.seccomp
        assert seccomp is not None
        state = hooks.state(kept, CREATING, self.pid)
        Agent(seccomp).hand_over(self.pid, self.pidfd, kept.config.oci_version, state)

    def undo(self) -> None:
        for descriptor in (self.channel, self.console):
            if descriptor >= 0:
                os.close(descriptor)
        self.channel = self.console = -1
        if self.interior.passage is not None:
            self.interior.passage.back()
        if self.pid > 0:
            # Our own child that nobody else reaps: the number is still its.
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            os.close(self.pidfd)
            self.pid = self.pidfd = -1
