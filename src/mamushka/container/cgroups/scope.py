"""A container's cgroup that systemd makes: a transient scope, delegated to us.

**A scope begins with a process**, and ends with its last. The container's own cannot be that first one: it is born
into its cgroup (see ``cgroup``), and has nothing to live for until there is one. So a process of one page, which waits
for the end of its line and does nothing else, holds the scope open until the container is inside, and ends with its
creator, whatever becomes of that: then the scope is empty, and systemd removes it. See
docs/decisions/0031-systemd-scopes.md.

From then on the scope is a cgroup like any other. systemd is asked again only to change limits and to forget the unit.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.container.cgroups import devices, unit
from mamushka.container.cgroups.bus import connect
from mamushka.container.cgroups.cgroup import Cgroup
from mamushka.container.cgroups.files import read
from mamushka.container.cgroups.layout import UNIFIED
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from mamushka.linux.process import PR_SET_NAME, initial
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.container.cgroups.bus import Bus
    from mamushka.container.cgroups.layout import Layout
    from mamushka.spec.runtime import Resources

_SYSTEM, _USER = "system", "user"
_START, _SET = "ssa(sv)a(sa(sv))", "sba(sv)"


class Scope(Cgroup):
    """The cgroup of a scope; ``slice``, ``id`` and ``annotations`` are known to whoever makes it."""

    __slots__ = ("_annotations", "_holder", "_id", "_slice", "unit", "user")

    def __init__(
        self,
        path: str,
        layout: Layout,
        *,
        user: bool,
        slice: str = "",
        id: str = "",
        annotations: Mapping[str, str] = EMPTY,
    ) -> None:
        super().__init__(path, layout)
        self.user, self.unit = user, os.path.basename(path)
        self._slice, self._id, self._annotations = slice, id, unit.annotated(annotations)
        self._holder: _Holder | None = None

    @property
    def place(self) -> str:
        return f"{_USER if self.user else _SYSTEM}:{self.path}"

    def create(self, resources: Resources) -> None:
        """Start the scope and set the limits; on failure nothing is left. Conflict when the unit is in use."""
        old, new = self._settings(resources)
        policy = devices.policy((*resources.devices, *devices.DEFAULT))
        bus = connect(user=self.user)
        try:
            self._holder = _Holder()
            self._start(bus, resources)
        except BaseException:
            self.settle()
            raise
        finally:
            bus.close()
        try:
            for directory in self._directories(old):
                os.makedirs(directory, exist_ok=True)
            self._fill(old, new, policy)
        except BaseException:
            self.kill()
            self.remove()
            raise
        trace.event("cgroup.created", path=self.path, unit=self.unit)

    def _start(self, bus: Bus, resources: Resources) -> None:
        assert self._holder
        trace.event("systemd.held", pid=self._holder.pid)
        properties = unit.scope(self._slice, self._id, self._holder.pid, unified=self._unified)
        properties |= self._limits(bus, resources) | self._annotations
        words = (self.unit, "fail", tuple(properties.items()), ())
        try:
            bus.job("StartTransientUnit", _START, *words)
        except Conflict:  # perhaps one that failed once and is remembered
            _forget(bus, self.unit)
            bus.job("StartTransientUnit", _START, *words)
        try:
            self._check_place(bus)
        except BaseException:
            bus.job("StopUnit", "ss", self.unit, "replace")
            raise

    def _check_place(self, bus: Bus) -> None:
        """That the scope is where the record says."""
        (path,) = bus.call("GetUnit", "s", self.unit)
        found = bus.property(path, "org.freedesktop.systemd1.Scope", "ControlGroup")
        if found != self.path:
            raise Unsupported(f"systemd put {self.unit} in the cgroup {found!r}, not in {self.path!r}")

    @property
    def _unified(self) -> bool:
        return self._layout.kind == UNIFIED

    def _limits(self, bus: Bus, resources: Resources) -> unit.Properties:
        version = unit.version(str(bus.fact("Version")))
        return unit.limits(resources, unified=self._unified, version=version)

    def _restrict(self, policy: devices.Policy) -> None:
        """Only root may load device rules; whoever is not can make no device either, nor can their container."""
        if self.user:
            trace.event("cgroup.ignored", setting="device rules", reason="these are only root's to set")
        else:
            super()._restrict(policy)

    def settle(self) -> None:
        """The container is inside: what held the scope open ends."""
        if self._holder:
            self._holder.end()
            self._holder = None

    def adoption(self) -> Callable[[int], None] | None:
        """Of a user outside their own manager's cgroups, as in a session: the kernel lets only systemd move them."""
        if not self.user:
            return None
        own = next((line[3:].strip() for line in read("/proc/self/cgroup").splitlines() if line[:3] == "0::"), "")
        above = os.path.commonpath([own or "/", self.path])
        reached = os.access(f"{self._layout.unified}{above}/cgroup.procs", os.W_OK)
        return None if reached else self._attach_process

    def _attach_process(self, pid: int) -> None:
        bus = connect(user=self.user)
        try:
            bus.call("AttachProcessesToUnit", "ssau", self.unit, "", (pid,))
        finally:
            bus.close()

    def set(self, resources: Resources) -> None:
        """Change limits, in systemd's mind and in the files."""
        bus = connect(user=self.user)
        try:
            self._check_before_update(resources)
            properties = self._limits(bus, resources)
            if properties:
                bus.call("SetUnitProperties", _SET, self.unit, True, tuple(properties.items()))
        finally:
            bus.close()
        super().set(resources)

    def remove(self) -> None:
        """Have systemd stop and forget the unit, then remove what is left of its directories."""
        self.settle()
        try:
            bus = connect(user=self.user)
        except (Unsupported, Unavailable):  # it ran when the scope was made; its directories can go without it
            super().remove()
            return
        try:
            bus.job("StopUnit", "ss", self.unit, "replace")
        except NotFound:
            pass
        finally:
            try:
                _forget(bus, self.unit)
            finally:
                bus.close()
        super().remove()


def _forget(bus: Bus, name: str) -> None:
    """Have a unit that failed removed from memory."""
    try:
        bus.call("ResetFailedUnit", "s", name)
    except NotFound:
        pass


class _Holder:
    """The process that holds a scope open."""

    __slots__ = ("_line", "pid")

    def __init__(self) -> None:
        from mamushka.container import channel
        from mamushka.container.spawn import Birth
        from mamushka.linux.script import CHANNEL, ROOM, Script

        self._line, theirs = channel.pair()
        try:
            script = Script()
            script.begin("hold the scope open")
            script.descriptor(theirs, CHANNEL)
            script.call("prctl", PR_SET_NAME, b"mamushka-scope", 0, 0, 0)
            script.call("read", CHANNEL, ROOM, 1)
            script.call("exit_group", 0)
            self.pid, pidfd = Birth(script, theirs, self._line, (), flags=0).give(lambda _pid: None)
        except BaseException:
            os.close(self._line)
            raise
        finally:
            os.close(theirs)
        os.close(pidfd)

    def end(self) -> None:
        """Let it go, and wait until it has gone."""
        os.close(self._line)
        os.waitpid(self.pid, 0)


def new(cgroups_path: str, id: str, annotations: Mapping[str, str], layout: Layout) -> Scope:
    """The scope of a container that is to be made. Unsupported where no manager answers."""
    user = os.geteuid() != 0 or not initial()
    name = unit.name(cgroups_path, id, user=user)
    bus = connect(user=user)
    try:
        root = str(bus.fact("ControlGroup")).rstrip("/")
    finally:
        bus.close()
    return Scope(root + name.path, layout, user=user, slice=name.slice, id=id, annotations=annotations)


def of_place(place: str, layout: Layout) -> Scope:
    """The scope of a container that there is already, as its record names it."""
    manager, _, path = place.partition(":")
    if manager not in (_SYSTEM, _USER) or not path.startswith("/") or "/../" in path:
        raise Invalid(f"the record of a container names the cgroup {place!r}, which cannot be")
    return Scope(path, layout, user=manager == _USER)
