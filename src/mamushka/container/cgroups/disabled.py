"""No cgroup at all: the container stays in its caller's, because the caller said so (``--cgroup-manager disabled``).

For callers that have put it where it belongs already. Limits cannot be had, and are refused; nor can device rules,
which come with every bundle and are left out. Whoever chose this knows it.
"""

from __future__ import annotations

from mamushka import trace
from mamushka.container.cgroups.cgroup import Cgroup
from mamushka.container.cgroups.layout import ABSENT, Layout
from mamushka.errors import Unsupported
from mamushka.spec.runtime import Resources
from mamushka.values import replace

PLACE = "disabled"


class Disabled(Cgroup):
    """A cgroup without directories."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", Layout(ABSENT))

    @property
    def place(self) -> str:
        return PLACE

    def create(self, resources: Resources) -> None:
        """Refuse limits."""
        if resources.devices:
            trace.event("cgroup.ignored", setting="device rules", reason="the cgroup manager is disabled")
        self.set(replace(resources, devices=()))

    def set(self, resources: Resources) -> None:
        """Unsupported, unless there is nothing to set."""
        if resources != Resources():
            raise Unsupported(
                "cannot limit anything: the container was to get no cgroup",
                hint="choose --cgroup-manager cgroupfs or systemd, or leave linux.resources out",
            )
