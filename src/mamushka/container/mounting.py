"""Mounts that come to a running container, or go, as ``crun mounts`` has it.

A process is born into the container's namespaces with a script, as every process of ours there, and ends without
having executed anything: what comes from the host it only attaches, what is the container's own it makes.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container import channel, mounts
from mamushka.container.exec import JoinContainer, entry
from mamushka.container.failure import explain
from mamushka.container.operation import Inside, script_of
from mamushka.container.privileges import prepare
from mamushka.container.program import Prepare
from mamushka.container.spawn import Birth
from mamushka.errors import Invalid
from mamushka.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW
from mamushka.linux.script import CHANNEL, Script
from mamushka.spec.runtime import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.record import Kept
    from mamushka.spec.runtime import Mount


class Unmount(Inside):
    """Take a mount away; what is in use stays with its users."""

    __slots__ = ("destination",)

    def __init__(self, destination: str) -> None:
        self.destination = os.fsencode(destination)

    def describe(self) -> str:
        return f"umount {os.fsdecode(self.destination)}"

    def write(self, script: Script) -> None:
        # Whoever exchanges what lies on the way has only mounts of the container's own to lose.
        script.call("umount2", self.destination, MNT_DETACH | UMOUNT_NOFOLLOW, about=self.destination)


class Leave(Inside):
    """End: everything is done."""

    __slots__ = ()

    def describe(self) -> str:
        return "leave the container"

    def write(self, script: Script) -> None:
        script.call("exit_group", 0)


def add(kept: Kept, pidfd: int, wanted: Iterable[Mount]) -> None:
    """Mount in order. What was mounted before one that fails stays."""
    trees: list[int] = []
    operations: list[Inside] = []
    try:
        for mount in wanted:
            asked = mounts.parse(mount)
            if not asked.bind:
                operations.append(mounts.MountFilesystem(mount, asked))
                continue
            source = os.path.join(kept.bundle, mount.source)
            trees.append(mounts.host_tree(source, asked, mount.destination))
            operations.append(mounts.AttachTree(trees[-1], mount.destination, source, recursive=asked.recursive))
        _perform(kept, pidfd, operations)
    finally:
        for tree in trees:
            os.close(tree)


def remove(kept: Kept, pidfd: int, unwanted: Iterable[Mount]) -> None:
    """Unmount in order, by destination."""
    operations: list[Inside] = []
    for mount in unwanted:
        if not mount.destination.startswith("/"):
            raise Invalid(f"the mount to remove has the destination {mount.destination!r}, not an absolute path")
        operations.append(Unmount(mount.destination))
    _perform(kept, pidfd, operations)


def _perform(kept: Kept, pidfd: int, operations: list[Inside]) -> None:
    own = {namespace.type for namespace in kept.config.linux.namespaces}
    born, kinds = entry(pidfd, own)
    nobody = Process(args=("mounts",))
    enter = [
        Prepare(prepare(nobody, user_namespace="user" in own), (), -1),
        JoinContainer(pidfd, kinds),
    ]
    every = [*enter, *operations, Leave()]
    for operation in every if trace.listening() else ():
        trace.event("plan.inside", operation=operation.describe())
    peer, theirs = channel.pair()
    try:
        script = Script()
        script.descriptor(theirs, CHANNEL)
        script_of(every, script)
        pid, its = Birth(script, theirs, peer, (), flags=0, born=born).give(lambda _pid: None)
        os.close(theirs)
        theirs = -1
        os.close(its)
        packet, _ = channel.receive(peer)
        os.waitpid(pid, 0)
    finally:
        for end in (peer, theirs):
            if end >= 0:
                os.close(end)
    if packet[:1] == channel.FAILED:
        raise explain(packet, nobody)
