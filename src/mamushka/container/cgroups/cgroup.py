"""One container's cgroup, which in the older layouts is a directory in each of several hierarchies.

**Entering is what costs.** A write of somebody else's pid to ``cgroup.procs`` takes a lock against every fork on
the host, for which the kernel first waits an RCU grace period: 5 to 20 ms. Two ways avoid it, and a container is
started by these alone: on cgroup v2, ``clone3`` with CLONE_INTO_CGROUP (``descriptor``); on v1, a thread that
moves *itself* by writing ``0`` to ``tasks``, which needs no such lock and takes 10 µs a hierarchy (``Entrance``).
``add`` takes the slow way and is for processes that exist already.

Which hierarchies a container has joined is not recorded: its directory is there or it is not. So any process
can open the cgroup by its path, and a half-made one is removed like a whole one.
"""

from __future__ import annotations

import errno
import os
import time

from mamushka import trace
from mamushka.container.cgroups.directories import discard, fill_cpuset, hand_down, make, move
from mamushka.container.cgroups.files import children, processes, read, refused, table, write, write_each
from mamushka.container.cgroups.layout import UNIFIED, Layout, resolve, whole
from mamushka.container.cgroups.layout import layout as host_layout
from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.linux.process import initial
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from mamushka.container.cgroups import devices
    from mamushka.container.cgroups.oom import OomWatch
    from mamushka.container.cgroups.settings import Setting
    from mamushka.container.cgroups.usage import Usage
    from mamushka.runtime import Stats
    from mamushka.spec.runtime import Resources

_SIGKILL = 9
# How long to wait for the kernel to finish what it was told: freezing, or letting go of dead processes.
# Generous, because a process in an uninterruptible disk wait delays both.
PATIENCE = 10.0

# Controllers of cgroup v2 that every container gets where they are on offer, for its statistics.
ACCOUNTED_V2 = frozenset(("cpu", "io", "memory", "pids"))


class Entrance:
    """Open doors into a v1 cgroup, for a child to walk through by writing 0. Empty on cgroup v2.

    Make it before the clone; the child enters while it has one thread, and before it unshares the cgroup namespace,
    whose root is where the process then is.
    """

    __slots__ = ("doors",)

    def __init__(self, doors: tuple[int, ...]) -> None:
        self.doors = doors

    def close(self) -> None:
        """Close the descriptors; in the child they are close-on-exec."""
        for door in self.doors:
            os.close(door)
        self.doors = ()


class Cgroup:
    """The cgroup at one path of every hierarchy; made by ``create``, gone after ``remove``."""

    __slots__ = ("_layout", "_tree", "_v1", "path")

    def __init__(self, path: str, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._tree = layout.unified + path if layout.unified else ""
        self._v1 = {name: where + path for name, where in layout.v1.items()}

    # Making and changing

    def create(self, resources: Resources) -> None:
        """Make the directories and set the limits; on failure nothing is left. Conflict when it is in use.

        Beside the bundle's device rules the default devices are allowed, as every runtime has it.
        """
        from mamushka.container.cgroups import devices

        old, new = self._settings(resources)
        policy = devices.policy((*resources.devices, *devices.DEFAULT))
        made: list[str] = []
        try:
            for directory in self._directories(old):
                make(directory, made)
            if self._tree:
                make(self._tree, made)  # first, so that nobody removes the empty directories above meanwhile
            self._fill(old, new, policy)
        except BaseException:
            for directory in reversed(made):
                discard(directory)
            raise
        trace.event("cgroup.created", path=self.path, directories=len(made))

    def _fill(self, old: list[Setting], new: list[Setting], policy: devices.Policy) -> None:
        """Put limits and device rules in force in directories that are there."""
        if self._tree:
            self._enable(new)
        self._apply(old, new)
        if (policy.rules or not policy.allow) and initial():
            self._restrict(policy)

    def settle(self) -> None:
        """The container's first process is inside: nothing else has to hold the cgroup."""

    @property
    def place(self) -> str:
        """What a record says to find it again: see ``open_cgroup``."""
        return self.path

    def set(self, resources: Resources) -> None:
        """Change limits of a living cgroup; what is absent stays. Device rules, when given, replace all earlier."""
        from mamushka.container.cgroups import devices

        old, new = self._settings(resources)
        self._check_before_update(resources)
        for directory in self._directories(old, accounted=()):
            if not os.path.isdir(directory):
                self._join_late(directory)
        if self._tree and new:
            self._enable(new)
        self._apply(old, new)
        if resources.devices and initial():
            self._restrict(devices.policy((*resources.devices, *devices.DEFAULT)))

    def _settings(self, resources: Resources) -> tuple[list[Setting], list[Setting]]:
        """The writes for the v1 hierarchies, and those for the cgroup2 tree. Unsupported without the controller."""
        from mamushka.container.cgroups import v1
        from mamushka.container.cgroups.settings import missing

        if self._layout.kind == UNIFIED:
            from mamushka.container.cgroups import v2

            old, new = [], v2.settings(resources)
        else:
            old = v1.settings(resources)
            # A controller that v1 does not have mounted may be on offer in the tree of a hybrid host.
            elsewhere = {item.controller for item in old} - self._v1.keys()
            old = [item for item in old if item.controller not in elsewhere]
            new = []
            if elsewhere or resources.unified:
                from mamushka.container.cgroups import v2

                new = v2.settings(_only(resources, elsewhere)) if elsewhere else []
                new += v2.unified(resources.unified)
        for item in new:
            if item.controller not in (*self._layout.controllers, "cgroup"):
                raise missing(item.controller, self._layout.reason or f"it is not among {self._where()}'s controllers")
        return old, new

    def _where(self) -> str:
        """The cgroup2 tree, or the part of it that is ours."""
        return self._layout.unified + self._layout.base or "cgroup2"

    def _directories(self, settings: Iterable[Setting], accounted: tuple[str, ...] | None = None) -> list[str]:
        """The v1 directories to have: for accounting, for the settings, and one by which processes are found."""
        from mamushka.container.cgroups import v1

        if accounted is None:
            accounted = v1.ACCOUNTED
            if not self._tree:
                accounted += ("freezer", "name=systemd")
        names = (*accounted, *(item.controller for item in settings))
        return list(dict.fromkeys(self._v1[name] for name in names if name in self._v1))

    def _join_late(self, directory: str) -> None:
        """Make a directory in a hierarchy that the running processes have not joined, and move them there."""
        make(directory, [])
        if directory == self._v1.get("cpuset"):
            fill_cpuset(directory, self._layout.v1["cpuset"])
        for pid in self.processes():
            move(directory, pid)

    def _enable(self, settings: Iterable[Setting]) -> None:
        """Make controllers available in the cgroup2 tree, from the root down to above this cgroup.

        A setting's controller must come; those for accounting only are taken where they are to be had.
        """
        from mamushka.container.cgroups.settings import ACCOUNTED

        needed = {item.controller for item in settings if item.controller != "cgroup"}
        optional = set(ACCOUNTED) & {*self._layout.controllers} if self._layout.kind == UNIFIED else set[str]()
        parent = os.path.dirname(self._tree)
        if not (needed | optional) - {*read(parent + "/cgroup.subtree_control").split()}:
            return
        directory = self._where()
        for name in ("", *os.path.dirname(self.path.removeprefix(self._layout.base)).split("/")[1:]):
            directory = f"{directory}/{name}" if name else directory
            hand_down(directory, needed, optional)

    def _apply(self, old: list[Setting], new: list[Setting]) -> None:
        """Write everything, in order.

        Some files constrain one another (memory ≤ memory and swap, quota and period), and which way round
        they must be written depends on what they hold: what is refused as invalid goes again after the rest.
        """
        again = []
        for item, directory in [(item, self._v1[item.controller]) for item in old] + [
            (item, self._tree) for item in new
        ]:
            if item.controller == "cpuset" and directory is not self._tree:
                fill_cpuset(directory, self._layout.v1["cpuset"])
            try:
                _write(directory, item)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EBUSY):
                    raise refused(f"{directory}/{item.file}", item.text, error) from error
                again.append((item, directory))
        for item, directory in again:
            try:
                _write(directory, item)
            except OSError as error:
                raise refused(f"{directory}/{item.file}", item.text, error) from error

    def _restrict(self, policy: devices.Policy) -> None:
        """Put the device rules in force. Unsupported where rules cannot be: a wall never thins silently.

        In a user namespace there are none to set: nobody there can make a device, and the mounts show none but those
        that the bundle binds.
        """
        from mamushka.container.cgroups import devices
        from mamushka.container.cgroups.settings import missing

        if self._layout.kind == UNIFIED:
            self._attach(devices.v2_program(policy))
        elif "devices" in self._v1:
            for file, texts in devices.v1_writes(policy):
                write_each(f"{self._v1['devices']}/{file}", texts)
        else:
            raise missing("devices", "the controller is mounted nowhere")

    def _attach(self, program: bytes) -> None:
        from mamushka.linux.bpf import attach_device_program, load_device_program

        loaded = load_device_program(program)
        try:
            directory = self.descriptor()
            try:
                attach_device_program(directory, loaded)
            finally:
                os.close(directory)
        finally:
            os.close(loaded)

    def _check_before_update(self, resources: Resources) -> None:
        memory = resources.memory
        if memory and memory.check_before_update and memory.limit and memory.limit > 0:
            used = self.stats().memory
            if used > memory.limit:
                raise Conflict(f"cannot limit memory to {memory.limit} bytes: {used} are in use")

    # Entering

    def descriptor(self) -> int:
        """The cgroup v2 directory for CLONE_INTO_CGROUP; the caller closes it. -1 where there is no cgroup2 tree."""
        return os.open(self._tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self._tree else -1

    def adoption(self) -> Callable[[int], None] | None:
        """What moves a process of ours in, where a clone into the cgroup is not allowed: see ``scope``."""
        return None

    def entrance(self) -> Entrance:
        """Doors into every v1 directory that exists; the caller closes them."""
        doors = []
        for directory in dict.fromkeys(self._v1.values()):
            try:
                doors.append(os.open(directory + "/tasks", os.O_WRONLY | os.O_CLOEXEC))
            except FileNotFoundError:  # not joined
                continue
        return Entrance(tuple(doors))

    def inside(self, places: Mapping[str, str]) -> Cgroup:
        """A cgroup below this one: where, by controller; "" stands for every hierarchy that is not named.

        Invalid for a controller or a path that cannot be, NotFound where nobody has made it.
        """
        chosen = {}
        for name, place in places.items():
            parts = [part for part in place.split("/") if part not in ("", ".")]
            if ".." in parts or "\0" in place:
                raise Invalid(f"{place!r} is not a sub cgroup path", hint="it begins at the container's own cgroup")
            if name and name not in self._v1:
                raise Invalid(f"no hierarchy of cgroup v1 has the controller {name!r}",
                              hint="cgroup v2 is one hierarchy: give the path alone")  # fmt: skip
            # Controllers that share a hierarchy go together.
            chosen[self._v1[name] if name else ""] = "".join(f"/{part}" for part in parts)
        found = Cgroup(self.path, self._layout)
        found._v1 = {name: own + chosen.get(own, chosen.get("", "")) for name, own in self._v1.items()}
        found._tree = self._tree and self._tree + chosen.get("", "")
        for own, below in zip((self._tree, *self._v1.values()), (found._tree, *found._v1.values()), strict=True):
            if own != below and os.path.isdir(own) and not os.path.isdir(below):
                raise NotFound(f"the cgroup {below} does not exist", hint="the container makes its own cgroups")
        return found

    def habitable(self, pid: int) -> Cgroup:
        """This, or the one below it where the process is, if this hands controllers down and so lets nobody in.

        Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint".
        """
        if not self._tree or not read(self._tree + "/cgroup.subtree_control").strip():
            return self
        for line in read(f"/proc/{pid}/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers and path.startswith(self.path + "/"):
                found = Cgroup(self.path, self._layout)
                found._tree = self._layout.unified + path
                return found
        return self

    def add(self, pid: int) -> None:
        """Move a process in, by force and slowly: see the top of this file."""
        for directory in self._joined():
            move(directory, pid)

    def _joined(self) -> list[str]:
        """The directories that exist, the cgroup2 tree's first."""
        every = dict.fromkeys((self._tree, *self._v1.values()) if self._tree else self._v1.values())
        return [directory for directory in every if os.path.isdir(directory)]

    def paths(self) -> tuple[tuple[str, str], ...]:
        """For the container's own view: (controllers, directory) of each hierarchy that it has joined.

        The cgroup2 tree's controllers are written "" where it is the only one, and "unified" beside v1.
        """
        groups: dict[str, list[str]] = {}
        for name, directory in self._v1.items():
            groups.setdefault(directory, []).append(name.removeprefix("name="))
        result = [(",".join(names), directory) for directory, names in groups.items() if os.path.isdir(directory)]
        if self._tree:
            result.append(("" if self._layout.kind == UNIFIED else "unified", self._tree))
        return tuple(result)

    def roots(self) -> tuple[tuple[str | None, str], ...]:
        """(controller, path within its hierarchy) of each that it has joined; no controller where the tree is one."""
        if self._layout.kind == UNIFIED:
            return ((None, self.path),)
        joined = {name: where for name, where in self._v1.items() if os.path.isdir(where)}
        return tuple((name.removeprefix("name="), self.path) for name in joined)

    # Asking

    def exists(self) -> bool:
        """Whether any of its directories is there."""
        return bool(self._joined())

    def processes(self) -> tuple[int, ...]:
        """The pids in it and in every cgroup below, as this process's pid namespace counts."""
        joined = self._joined()
        return tuple(sorted(processes(joined[0]))) if joined else ()

    def stats(self) -> Stats:
        """Resource use now."""
        from mamushka.container.cgroups import stats

        self._counted()
        return stats.v2(self._tree) if self._layout.kind == UNIFIED else stats.v1(self._v1)

    def _counted(self) -> None:
        if self._layout.reason:
            raise Unsupported(f"nobody counts what {self.path} uses: {self._layout.reason}")

    def usage(self) -> Usage:
        """All that is counted here, as the kernel tells it."""
        from mamushka.container.cgroups import usage

        self._counted()
        return usage.v2(self._tree) if self._layout.kind == UNIFIED else usage.v1(self._v1, self._tree)

    def watch_oom(self) -> OomWatch | None:
        """Word of kills for want of memory, the caller's to close; None where no controller counts memory."""
        from mamushka.container.cgroups.oom import OomWatch

        directory = self._tree if self._layout.kind == UNIFIED else self._v1.get("memory", "")
        version = 2 if self._layout.kind == UNIFIED else 1
        return OomWatch(directory, version) if os.path.exists(directory + "/memory.stat") else None

    def oom_kills(self) -> int:
        """How many processes the kernel killed here because the memory limit was reached."""
        if self._layout.kind == UNIFIED:
            return table(self._tree + "/memory.events").get("oom_kill", 0)
        return table(self._v1.get("memory", "") + "/memory.oom_control").get("oom_kill", 0)

    # Stopping

    def freezer(self) -> str:
        """The directory whose files freeze it; empty where there is none."""
        return self._tree or self._v1.get("freezer", "")

    def freeze(self) -> None:
        """Stop every process and wait until all stand still. Conflict, and thawed again, when they do not."""
        self._freeze("1", "FROZEN")
        deadline = time.monotonic() + PATIENCE
        pause = 0.0005
        while not self.frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise Conflict(
                    f"cannot freeze {self.path}: some process did not stop within {PATIENCE:.0f} s",
                    hint="a process in an uninterruptible wait (state D in ps) cannot be frozen; try again later",
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def thaw(self) -> None:
        """Let every process go on; harmless when none is frozen."""
        self._freeze("0", "THAWED")

    def _freeze(self, tree: str, freezer: str) -> None:
        path, text = f"{self._tree}/cgroup.freeze", tree
        if not self._tree:
            if self._layout.reason:
                raise Unsupported(f"cannot freeze {self.path}: {self._layout.reason}")
            if not os.path.isdir(self._v1.get("freezer", "")):
                raise Unsupported(f"cannot freeze {self.path}: it is in no hierarchy that can freeze",
                                  hint="mount cgroup2, or the freezer controller of cgroup v1")  # fmt: skip
            path, text = self._v1["freezer"] + "/freezer.state", freezer
        try:
            write(path, text)
        except OSError as error:
            raise refused(path, text, error) from error

    def frozen(self) -> bool:
        """Whether every process stands still."""
        if self._tree:
            return table(self._tree + "/cgroup.events").get("frozen", 0) == 1
        return read(self._v1.get("freezer", "") + "/freezer.state").strip() == "FROZEN"

    def kill(self) -> None:
        """SIGKILL every process, also those that are being born. They are dead or dying when it returns."""
        if self._tree:
            try:
                write(self._tree + "/cgroup.kill", "1")
                return
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # before Linux 5.14; removed by now, by systemd
                    raise
        for _ in range(_ROUNDS):
            pids = self.processes()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, _SIGKILL)
                except ProcessLookupError:
                    continue
            if os.path.isdir(self._v1.get("freezer", "")):
                self.thaw()  # a frozen v1 process dies when it thaws

    def removal(self) -> list[str]:
        """What would remove it once all in it have ended: a file to write 1 to, or nothing, and the directories."""
        kill = self._tree + "/cgroup.kill" if self._tree else ""
        return [kill if kill and os.path.exists(kill) else "", *self._joined()]

    def remove(self) -> None:
        """Remove it and everything below it from every hierarchy; harmless when it is gone.

        Kills nothing: Conflict when processes stay in it for longer than the kernel needs to let go of dead ones.
        """
        deadline = time.monotonic() + PATIENCE / 5
        for directory in self._joined():
            pause = 0.0005
            while not discard(directory):
                if time.monotonic() > deadline:
                    raise Conflict(
                        f"cannot remove {directory}: in use by {processes(directory)[:8]}",
                        hint="stop these processes first",
                    )
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
        trace.event("cgroup.removed", path=self.path)


def prune(prefix: str, layout: Layout | None = None) -> None:
    """Remove the directory that held containers from every hierarchy where it is empty; harmless otherwise."""
    for directory in everywhere(prefix, layout):
        try:
            os.rmdir(directory)
        except OSError:
            continue


def everywhere(prefix: str, layout: Layout | None = None) -> list[str]:
    """The directory of this path in every hierarchy, whether or not it is there."""
    found = layout or host_layout()
    roots = (found.unified, *found.v1.values()) if found.unified else tuple(found.v1.values())
    return [root + prefix for root in dict.fromkeys(roots)]


def _only(resources: Resources, controllers: set[str]) -> Resources:
    """The part of the resources that is for these controllers of cgroup v1, or names files of v2 itself."""
    from mamushka.spec.runtime import Resources

    return Resources(
        memory=resources.memory if "memory" in controllers else None,
        cpu=resources.cpu if controllers & {"cpu", "cpuset"} else None,
        pids=resources.pids if "pids" in controllers else None,
        block_io=resources.block_io if "blkio" in controllers else None,
        hugepage_limits=resources.hugepage_limits if "hugetlb" in controllers else (),
        network=resources.network if controllers & {"net_cls", "net_prio"} else None,
        rdma=resources.rdma if "rdma" in controllers else EMPTY,
        unified=resources.unified,
    )


# Rounds of signals against processes that fork meanwhile; each round also kills all that the last one missed.
_ROUNDS = 100


CGROUPFS, SYSTEMD, DISABLED = "cgroupfs", "systemd", "disabled"
MANAGERS = (CGROUPFS, SYSTEMD, DISABLED)


def choose(manager: str, cgroups_path: str, id: str, annotations: Mapping[str, str]) -> Cgroup:
    """The cgroup that a new container is to get, by one of the MANAGERS; nothing is made yet."""
    if manager == CGROUPFS:
        return Cgroup(resolve(cgroups_path, id), host_layout())
    if manager == DISABLED:
        from mamushka.container.cgroups.disabled import Disabled

        return Disabled()
    if manager != SYSTEMD:
        raise Invalid(f"there is no cgroup manager {manager!r}", hint=f"choose one of {', '.join(MANAGERS)}")
    from mamushka.container.cgroups import scope

    return scope.new(cgroups_path, id, annotations, whole())


def open_cgroup(place: str, layout: Layout | None = None) -> Cgroup:
    """The cgroup at a place, whether or not it exists yet: an absolute path, or what ``Cgroup.place`` says."""
    if place[:1] == "/":
        return Cgroup(place, layout or host_layout())
    if place == DISABLED:
        from mamushka.container.cgroups.disabled import Disabled

        return Disabled()
    from mamushka.container.cgroups import scope

    return scope.of_place(place, layout or whole())


def above(place: str) -> list[str]:
    """The directories above a cgroup, in every hierarchy, that hold workloads' cgroups alone; the deepest first."""
    from mamushka.container.cgroups.layout import PARENT

    found: list[str] = []
    base = host_layout().base
    parent = os.path.dirname(place).removeprefix(base)
    while parent == PARENT or parent.startswith(f"{PARENT}/"):  # above are other people's
        found += everywhere(base + parent)
        parent = os.path.dirname(parent)
    return found


def stale(prefix: str, live: Container[str], layout: Layout | None = None) -> tuple[str, ...]:
    """Paths of the cgroups directly below ``prefix`` whose name is not among the live ids, in any hierarchy."""
    found = layout or host_layout()
    roots = dict.fromkeys((found.unified, *found.v1.values()) if found.unified else found.v1.values())
    names = {os.path.basename(child) for root in roots for child in children(root + prefix)}
    return tuple(f"{prefix}/{name}" for name in sorted(names) if name not in live)


def _write(directory: str, item: Setting) -> None:
    try:
        write(f"{directory}/{item.file}", item.text)
    except FileNotFoundError:
        if item.otherwise is None:
            raise
        file, text = item.otherwise
        write(f"{directory}/{file}", text)
