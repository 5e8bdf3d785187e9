"""From a bundle to the operations that build it: what will happen inside, in order, before anything happens.

The order is forced by what each step needs:

  1. as the caller: labels and scores through the host's /proc, the cgroup, joined namespaces
  2. before the root changes: mounts, devices, the terminal, and hooks that expect the host's root still there
  3. behind the root: kernel settings, masks, read-only paths
  4. as the program's own process: descriptors, directory, program, signals, the gate, Landlock, privileges, execve
"""

from __future__ import annotations

import os

from mamushka.container import mounts, rootfs
from mamushka.container.channel import AwaitGo, AwaitHooks, AwaitStart
from mamushka.container.namespaces import HideCgroups, Join, Namespaces, SetNames, SetSysctls, check_sysctls
from mamushka.container.operation import DEVPTS, GATE, OUTCOME, PROC, SYSFS, Inside, script_of
from mamushka.container.process import attributes_of, check_process, confinement, restrictions
from mamushka.container.program import (
    ArrangeDescriptors,
    Confine,
    EnterDirectory,
    Execute,
    FindHome,
    FindProgram,
    Prepare,
    ResetSignals,
    first_writes,
    known_home,
)
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.filesystems import DEVICE_LINKS, DEVICES, PROPAGATION
from mamushka.linux.fd import AT_FDCWD, AT_RECURSIVE
from mamushka.linux.mount import MS_PRIVATE, MS_REC, MS_SLAVE, open_tree, set_attributes
from mamushka.linux.process import CLONE_NEWCGROUP, CLONE_NEWNS, initial
from mamushka.linux.script import CHANNEL, Script
from mamushka.runtime import CREATED, CREATING
from mamushka.spec.runtime import Hooks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.container.cgroups.cgroup import Cgroup, Entrance
    from mamushka.container.netdevices import Passage
    from mamushka.container.options import Options
    from mamushka.container.privileges import Privileges
    from mamushka.container.resctrl import Group
    from mamushka.linux.script import Variable
    from mamushka.record import Kept
    from mamushka.runtime import Bundle, Stdio
    from mamushka.spec.runtime import Config, Device, Mount, Process


class Interior:
    """One container's operations, and the descriptors that they hold until the process is made."""

    def __init__(self, bundle: Bundle, stdio: Stdio, kept: Kept, *, gated: bool, no_pivot: bool = False) -> None:
        config = bundle.config
        self.bundle, self.config, self.kept, self.stdio = bundle, config, kept, stdio
        self.gated, self.no_pivot = gated, no_pivot
        self.process = checked_process(config)
        self.attributes = attributes_of(self.process, config.linux)
        self.trees: list[int] = []
        # What lies where in the root, the latest last: a tree's descriptor, or what the process makes.
        self.places: list[tuple[list[bytes], int]] = []
        self.first: list[tuple[int | bytes, bytes]] = []
        self.kept_mounts: set[str] = set()  # filesystems whose descriptors later operations find
        self.held: dict[int, Variable] = {}  # these descriptors, by the place where they are mounted
        self.operations: list[Inside] = []
        self.preserve: tuple[int, ...] = ()
        self.restricted = restrictions(config, self.process)
        self.group = self._group()
        self.namespaces = Namespaces(config.linux)
        try:
            self._check_names()
            self.passage = self._passage()
        except BaseException:
            self.namespaces.close()
            raise
        hooks = config.hooks
        # Hooks that run before the root changes; they look for it where the bundle says it is, and are told the pid.
        self.hooked = bool(hooks.prestart or hooks.create_runtime or hooks.create_container)

    def _check_names(self) -> None:
        """Names and settings of what the container does not have apart from the host are the host's."""
        config = self.config
        check_sysctls(config.linux.sysctl, self.namespaces)
        if (config.hostname or config.domainname) and not self.namespaces.has("uts"):
            raise Invalid(
                "a host name or domain name without a uts namespace would be the host's own",
                hint='add {"type": "uts"} to linux.namespaces, or leave hostname and domainname out',
            )

    def _passage(self) -> Passage | None:
        """The host's network devices that are to move in."""
        if not self.config.linux.net_devices:
            return None
        from mamushka.container.netdevices import Passage

        return Passage(self.config.linux.net_devices, private=self.namespaces.has("network"))

    def _group(self) -> Group | None:
        """The class of service that it is to belong to."""
        if self.config.linux.intel_rdt is None:
            return None
        from mamushka.container.resctrl import Group

        group = Group(self.config.linux.intel_rdt, self.kept.id)
        group.check()
        return group

    def close(self) -> None:
        """Let go of everything: the process, if there is one, has its own copies."""
        self.namespaces.close()
        for tree in self.trees:
            os.close(tree)
        self.trees = []

    def build(
        self, root: int, preserve: tuple[int, ...], privileges: Privileges, cgroup: Cgroup, entrance: Entrance
    ) -> None:
        """Fill ``operations``. Opens what is taken from the host."""
        put = self.operations.append
        self.preserve = preserve
        hooks = self.config.hooks
        self.first = first_writes(privileges, entrance)
        put(Prepare(privileges, () if self.namespaces.has("user") else self.first, self._host_proc(privileges)))
        for descriptor, flag, path in self.namespaces.entered:
            put(Join(descriptor, flag, path))
        if self.namespaces.new & CLONE_NEWCGROUP:
            put(HideCgroups())
        self.operations += self._root(root)
        self.operations += self._filesystems(cgroup)
        self.operations += self._devices()
        if self.process.terminal:
            from mamushka.container.console import OpenConsole

            put(OpenConsole(self.process, mounted=True, pts="devpts" in self.kept_mounts))
        if self.config.hostname or self.config.domainname:
            put(SetNames(self.config.hostname, self.config.domainname))
        if self.hooked:
            put(AwaitGo())
        if hooks.prestart or hooks.create_runtime:
            put(AwaitHooks())
        if hooks.create_container:
            from mamushka.container.hooks import RunHooks

            put(RunHooks("createContainer", hooks.create_container, self.kept, CREATING))
        self.operations += self._behind_the_root()
        self.operations += self._program(preserve, privileges)

    def _host_proc(self, privileges: Privileges) -> int:
        """For what the process writes there about itself; -1 where it writes nothing."""
        if not privileges.in_proc():
            return -1
        from mamushka.linux import procfs

        self.trees.append(procfs.open_root())
        return self.trees[-1]

    def outside(self, root: int) -> tuple[int, list[tuple[str, int, str]]]:
        """What alone comes from the host: the root's tree, and (destination, tree, source) of the bind mounts."""
        tree = self._tree(root)
        binds = []
        for mount in self.config.mounts:
            asked = mounts.parse(mount)
            if asked.bind:
                self._from_host(mount, asked)
                binds.append((mount.destination, self.trees[-1], mount.source))
        if self.namespaces.has("user"):
            binds += [(os.fsdecode(path), device, os.fsdecode(path)) for path, device in self._host_devices()]
        return tree, binds

    def _root(self, root: int) -> Iterator[Inside]:
        readable = self._root_path()
        root = self._tree(root)
        # Over "/" where nobody looks for it: there setns finds it too, which a root that was not pivoted needs.
        # In a mount namespace that was there the path may be anything.
        own = self.namespaces.new & CLONE_NEWNS
        visible = self.hooked and own and not self.no_pivot and os.path.isdir(readable)
        target = os.fsencode(readable) if visible else b"/"
        self.places.append(([], root))
        yield rootfs.EnterRoot(root, target, readable)

    def _tree(self, root: int) -> int:
        """The root's detached tree: what was given, or a copy of what lies at its path."""
        if root >= 0:
            return root
        if self.config.root is None:
            raise Invalid("config.json has no root", hint="root.path names the root filesystem")
        readable = self._root_path()
        try:
            root = open_tree(AT_FDCWD, os.fsencode(readable), rootfs.COPY | AT_RECURSIVE)
        except FileNotFoundError as error:
            raise NotFound(
                f"the root filesystem {readable} does not exist", hint="root.path starts at the bundle's directory"
            ) from error
        self.trees.append(root)
        # As a slave it is told of what the host mounts below it.
        told = PROPAGATION.get(self.config.linux.rootfs_propagation, 0) & ~MS_REC == MS_SLAVE
        set_attributes(root, propagation=MS_SLAVE if told else MS_PRIVATE, flags=AT_RECURSIVE)
        return root

    def _root_path(self) -> str:
        path = self.config.root.path if self.config.root else "rootfs"
        return os.path.normpath(os.path.join(self.bundle.path, path))

    def _filesystems(self, cgroup: Cgroup) -> Iterator[Inside]:
        for mount in self._possible():
            asked = mounts.parse(mount)
            where = rootfs.components(os.fsencode(mount.destination))
            if "remount" in asked.words:
                yield mounts.Remount(mount.destination, asked)
                continue
            if asked.bind:
                yield self._from_host(mount, asked)
                self.places.append((where, self.trees[-1]))
                continue
            if mount.type in ("cgroup", "cgroup2"):
                paths = cgroup.paths()
                if paths:
                    yield mounts.MountCgroups(mount.destination, asked, paths)
            elif mount.type == "tmpfs" and "tmpcopyup" in asked.words:
                yield self._copy(mount, asked, where)
                self.places.append((where, self.trees[-1]))
                continue
            else:
                yield self._filesystem(mount, asked)
            self.places.append((where, _NEW if mount.type == "tmpfs" else _OTHER))

    def _possible(self) -> Iterable[Mount]:
        """The bundle's mounts, or what shows the same where a user namespace cannot have them. Decision 0032."""
        if initial():
            return self.config.mounts
        from mamushka.container.substitute import substitute

        return substitute(self.config.mounts, self.namespaces)

    def _filesystem(self, mount: Mount, asked: Options) -> Inside:
        made = mounts.MountFilesystem(mount, asked, self.config.linux.mount_label)
        if mount.type in _KEPT and mount.type not in self.kept_mounts and not made.long:
            made.keep = _KEPT[mount.type]
            self.kept_mounts.add(mount.type)
            self.held[len(self.places)] = made.keep
        return made

    def _copy(self, mount: Mount, asked: Options, where: list[bytes]) -> Inside:
        from mamushka.container.copyup import AttachCopy, filled

        pairs = mounts.parameters(mount, asked, self.config.linux.mount_label)
        above, tree = next(place for place in reversed(self.places) if where[: len(place[0])] == place[0])
        made = filled(mount.destination, pairs, asked, tree, b"/".join(where[len(above) :]))
        self.trees.append(made)
        return AttachCopy(made, mount.destination, pairs)

    def _from_host(self, mount: Mount, asked: Options) -> Inside:
        source = os.path.join(self.bundle.path, mount.source)
        tree = mounts.host_tree(source, asked, mount.destination)
        self.trees.append(tree)
        if mount.uid_mappings or mount.gid_mappings or "idmap" in asked.words or "ridmap" in asked.words:
            self._map_ids(tree, mount, asked)
        return mounts.AttachTree(tree, mount.destination, source, recursive=asked.recursive)

    def _map_ids(self, tree: int, mount: Mount, asked: Options) -> None:
        from mamushka.container.idmap import apply

        linux = self.config.linux
        uids = mount.uid_mappings or linux.uid_mappings
        gids = mount.gid_mappings or linux.gid_mappings
        apply(tree, uids, gids, recursive="ridmap" in asked.words, destination=mount.destination)

    def _devices(self) -> Iterator[Inside]:
        given = {device.path: device for device in (*DEVICES, *self.config.linux.devices)}
        for device in given.values():
            check_device(device)
        if initial() and not self.namespaces.has("user"):
            yield rootfs.MakeDevices(given.values(), DEVICE_LINKS, fresh=self._fresh(given.values()))
            return
        for path, tree in self._host_devices():
            yield rootfs.BindDevice(path, tree)
        yield rootfs.MakeDevices((), DEVICE_LINKS, fresh=False)

    def _host_devices(self) -> Iterator[tuple[bytes, int]]:
        """(path, tree) of the host's, for a container whose user namespace forbids to make its own."""
        mounted = {mount.destination for mount in self.config.mounts}
        given = {device.path: device for device in (*DEVICES, *self.config.linux.devices)}
        for device in given.values():
            if device.type != "p" and device.path not in mounted:
                from mamushka.container.substitute import host_node

                tree = open_tree(AT_FDCWD, host_node(device), rootfs.COPY)
                self.trees.append(tree)
                yield os.fsencode(device.path), tree

    def _fresh(self, devices: Iterable[Device]) -> bool:
        """Whether /dev is a tmpfs that was made just now, with nothing in it that one of the devices could meet."""
        whole = [tree for where, tree in self.places if where == [b"dev"]]
        names = {rootfs.components(os.fsencode(device.path))[-1] for device in devices}
        taken = {where[1] for where, _ in self.places if where[:1] == [b"dev"] and len(where) > 1}
        return whole[-1:] == [_NEW] and taken.isdisjoint(names)

    def _behind_the_root(self) -> Iterator[Inside]:
        linux = self.config.linux
        yield rootfs.MoveRoot() if self.no_pivot else rootfs.PivotRoot()
        if linux.sysctl:
            yield SetSysctls(linux.sysctl, mounted="proc" in self.kept_mounts)
        readonly = bool(self.config.root and self.config.root.readonly)
        propagation = PROPAGATION.get(linux.rootfs_propagation, 0)
        if linux.rootfs_propagation and not propagation:
            raise Invalid(f"there is no propagation {linux.rootfs_propagation!r}")
        if readonly:
            yield rootfs.MakeDirectory(self.process.cwd)
        if readonly or propagation:
            yield rootfs.SetRoot(readonly=readonly, propagation=propagation)
        if linux.readonly_paths:
            yield rootfs.ReadOnly(self._spots(linux.readonly_paths))
        if linux.masked_paths:
            yield rootfs.Mask(self._spots(linux.masked_paths))

    def _spots(self, paths: Iterable[str]) -> list[rootfs.Spot]:
        """Where they are: below the mount that holds them, wherever somebody has moved that meanwhile.

        Who shares the root filesystem can rename a mount point, and put something else at its name.
        """
        spots = []
        for path in paths:
            names = rootfs.components(os.fsencode(path))
            index = max(index for index, (where, _) in enumerate(self.places) if names[: len(where)] == where)
            where, tree = self.places[index]
            below = b"/".join(names[len(where) :])
            held = self.held.get(index, tree if index and tree >= 0 else None) if below else None
            spots.append(rootfs.Spot(path, held, below))
        return spots

    def _program(self, preserve: tuple[int, ...], privileges: Privileges) -> Iterator[Inside]:
        process, start_container = self.process, self.config.hooks.start_container
        find = FindProgram(process)
        labelled = privileges.labelled
        yield ArrangeDescriptors(self.stdio, preserve, terminal=process.terminal, gated=self.gated, labelled=labelled)
        yield EnterDirectory(process, make=True)
        yield find
        yield ResetSignals()
        if not self.hooked:
            yield AwaitGo()
        if b"HOME" not in find.environment:
            home = self._home()
            if home:
                find.environment[b"HOME"] = home
            else:
                yield FindHome()
        # What a kernel may refuse is tried before the gate; but a hook is not to be scheduled like the program.
        yield from () if start_container else self.attributes
        if self.gated:
            yield AwaitStart()
        if start_container:
            from mamushka.container.hooks import RunHooks

            yield RunHooks("startContainer", start_container, self.kept, CREATED)
            yield from self.attributes
        yield from self.restricted
        summary = confinement(process, seccomp=self.config.linux.seccomp is not None)
        yield Confine(privileges, summary, gated=self.gated)
        yield Execute(find, process.args)

    def _home(self) -> bytes:
        """The user's home directory, where it can be told before anything is mounted in the root filesystem."""
        if any(where == [b"etc", b"passwd"][: len(where)] for where, _ in self.places[1:]):
            return b""
        return known_home(self.places[0][1], self.process.user.uid)

    def descriptors(self) -> list[int]:
        """All that operations may hold, in an order that follows from the bundle."""
        stdio = self.stdio
        joined = [descriptor for descriptor, _, _ in self.namespaces.joined]
        doors = [place for place, _ in self.first if isinstance(place, int)]
        root = self.places[0][1]
        return [root, *self.trees, *joined, stdio.stdin, stdio.stdout, stdio.stderr, *self.preserve, *doors]

    def script(self, channel: int, gate: int, outcome: int) -> Script:
        """What the process is to do, all of it; with its ends of the channel and, if it is gated, of the gate."""
        script = Script()
        script.descriptor(channel, CHANNEL)
        if self.gated:
            script.descriptor(gate, GATE)
            script.descriptor(outcome, OUTCOME)
        script_of(self.operations, script)
        return script


_NEW, _OTHER = -1, -2  # an empty tmpfs, and any other filesystem, that the container's process makes
_KEPT = {"proc": PROC, "devpts": DEVPTS, "sysfs": SYSFS}


def checked_process(config: Config) -> Process:
    """The bundle's process; Invalid or Unsupported where it cannot be run."""
    process = check_process(config.process)
    for moment in Hooks.__match_args__:
        for hook in getattr(config.hooks, moment):
            if not hook.path.startswith("/"):
                raise Invalid(f"the hook {hook.path!r} is not an absolute path")
            if hook.timeout is not None and hook.timeout <= 0:  # config.md#posix-platform-hooks
                raise Invalid(f"the hook {hook.path} has a timeout of {hook.timeout} s", hint="leave it out for none")
    if config.linux.mount_label:
        check_label(config.linux.mount_label)
    if config.linux.seccomp:
        from mamushka.container.seccomp import listens

        if listens(config.linux.seccomp):
            from mamushka.container.listener import expect

            expect(config.linux.seccomp)
    return process


def check_label(label: str) -> None:
    """Unsupported where no mount can have an SELinux label."""
    from mamushka.container.privileges import selinux

    if not selinux():
        raise Unsupported(
            f"cannot use the SELinux mount label {label!r}: SELinux is not enabled",
            hint="leave linux.mountLabel out, or boot with selinux=1",
        )


def check_device(device: Device) -> None:
    """Invalid for a device that cannot be made."""
    if device.type not in ("c", "u", "b", "p") or not rootfs.components(os.fsencode(device.path)):
        raise Invalid(f"the device {device.path!r} of type {device.type!r} cannot be made", hint="types are c, u, b, p")
