"""Making a container anew from what criu has written down, as a plan: the record, the cgroup, the processes.

criu makes the namespaces, the processes and all that is theirs. What lies outside is made ready for it by a script in
a mount namespace of criu's own: the root and the bind mounts, detached trees as for any container, are put on a small
tmpfs that covers the container's record there and nowhere else. So the host never sees them, and they end with criu.

criu itself is in the container's cgroup, which its limits reach only when the processes are whole: whoever kills the
cgroup of a restore that its maker did not finish ends criu too.
"""

from __future__ import annotations

import os

from mamushka import document, hooks, trace
from mamushka.container import rootfs
from mamushka.container.checkpoint import DESCRIPTORS, MOUNTS, NETWORK, RESTORE_LOG, Directories, common
from mamushka.container.criu import rpc
from mamushka.container.criu.failure import Failed, explained
from mamushka.container.criu.service import Criu, start
from mamushka.container.namespaces import HideCgroups
from mamushka.container.operation import OPENED, ROOT, TARGET, Inside
from mamushka.errors import Conflict, Invalid
from mamushka.linux.fd import AT_FDCWD, AT_RECURSIVE, F_DUPFD_CLOEXEC, fcntl
from mamushka.linux.keyring import KEYCTL_JOIN_SESSION_KEYRING
from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_SIZE,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_SLAVE,
    mount_attr,
)
from mamushka.linux.process import CLONE_NEWCGROUP, CLONE_NEWNS, PR_SET_NO_NEW_PRIVS
from mamushka.runtime import Started
from mamushka.spec.runtime import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.container.cgroups.cgroup import Cgroup, Entrance
    from mamushka.container.plan import Interior
    from mamushka.linux.script import Script
    from mamushka.record import Record
    from mamushka.runtime import CheckpointOptions

_SET_UP, _RESTORED, _TERMINAL = "setup-namespaces", "post-restore", "orphan-pts-master"
_ROOT = "root"
_KEYS_MAX = 1024  # mounts of one container
_FIRST = 3


class CoverRecord(Inside):
    """Mounts of criu's own: nothing goes to the host, and an empty filesystem to put things on, as ROOT."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = os.fsencode(path)

    def describe(self) -> str:
        return f"mount -t tmpfs {os.fsdecode(self.path)}, where criu alone sees it"

    def write(self, script: Script) -> None:
        script.call("mount_setattr", AT_FDCWD, b"/", AT_RECURSIVE, mount_attr(propagation=MS_SLAVE), MOUNT_ATTR_SIZE)
        script.call("fsopen", b"tmpfs", FSOPEN_CLOEXEC, into=OPENED)
        script.call("fsconfig", OPENED, FSCONFIG_CMD_CREATE, 0, 0, 0)
        script.call("fsmount", OPENED, FSMOUNT_CLOEXEC, 0, into=ROOT)
        script.call("close", OPENED)
        script.call("move_mount", ROOT, b"", AT_FDCWD, self.path, MOVE_MOUNT_F_EMPTY_PATH, about=self.path)


class PutTree(Inside):
    """One of the trees, where criu finds it."""

    __slots__ = ("directory", "name", "tree", "what")

    def __init__(self, tree: int, name: str, what: str) -> None:
        self.tree, self.name, self.what = tree, os.fsencode(name), what
        self.directory = os.fstat(tree).st_mode & 0o170000 == 0o040000

    def describe(self) -> str:
        return f"mount {self.what} for criu"

    def write(self, script: Script) -> None:
        rootfs.make_target(script, self.name, TARGET, directory=self.directory)
        rootfs.attach(script, script.descriptor(self.tree), TARGET, self.name)
        script.call("close", TARGET)


class MakePlaces(Inside):
    """Where the bundle's mounts go in the root, should it be another one than the checkpoint's."""

    __slots__ = ("places", "tree")

    def __init__(self, tree: int, places: list[tuple[bytes, bool]]) -> None:
        self.tree, self.places = tree, places

    def describe(self) -> str:
        return f"make {len(self.places)} mount points in the root"

    def write(self, script: Script) -> None:
        script.call("fcntl", script.descriptor(self.tree), F_DUPFD_CLOEXEC, 0, into=ROOT)
        for path, directory in self.places:
            rootfs.make_target(script, path, TARGET, directory=directory)
            script.call("close", TARGET)


class EnterCgroup(Inside):
    """On cgroup v1; into a cgroup2 directory the process is born."""

    __slots__ = ("doors",)

    def __init__(self, entrance: Entrance) -> None:
        self.doors = entrance.doors

    def describe(self) -> str:
        return "enter the cgroup"

    def write(self, script: Script) -> None:
        for door in self.doors:
            script.call("write", script.descriptor(door), b"0", 1)


class ProtectRoot(Inside):
    """Make a container's root read-only, from inside: criu needs to write in it, and leaves it as it found it."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace

    def describe(self) -> str:
        return "make the root filesystem read-only"

    def write(self, script: Script) -> None:
        script.call("setns", script.descriptor(self.namespace), CLONE_NEWNS)
        readonly = mount_attr(attr_set=MOUNT_ATTR_RDONLY)
        script.call("mount_setattr", AT_FDCWD, b"/", 0, readonly, MOUNT_ATTR_SIZE)
        script.call("exit_group", 0)


class ForbidPrivileges(Inside):
    """no_new_privs, which a criu before 3.19 does not restore: what it makes inherits it."""

    __slots__ = ()

    def describe(self) -> str:
        return "set no_new_privs"

    def write(self, script: Script) -> None:
        script.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class JoinKeyring(Inside):
    """A session keyring of the container's own, where criu would hand on the caller's: it does not restore them."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = os.fsencode(name)

    def describe(self) -> str:
        return f"join the session keyring {os.fsdecode(self.name)}"

    def write(self, script: Script) -> None:
        script.call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, self.name, 0, 0, 0)


class RestoreProcesses:
    """Have criu make the processes, and follow it until they run."""

    def __init__(
        self,
        interior: Interior,
        record: Record,
        cgroup: Cgroup,
        root: int,
        directory: str,
        options: CheckpointOptions,
        seccomp: bytes,
        keyring: str,
    ) -> None:
        self.interior, self.record, self.cgroup, self.seccomp = interior, record, cgroup, seccomp
        self.keyring = keyring
        self.root, self.directory, self.options = root, directory, options
        self.stage = os.path.realpath(record.path)
        self.pid = self.pidfd = self.console = -1
        self._borrowed: list[int] = []

    @property
    def started(self) -> Started:
        """What the caller gets."""
        return Started(self.pid, self.pidfd, self.console)

    def describe(self) -> str:
        return f"restore the processes from {self.directory}"

    def execute(self) -> None:
        directories = Directories(self.directory, self.options.work, make=False)
        entrance = self.cgroup.entrance()
        group = self.cgroup.descriptor()
        try:
            told, before = self._told(directories, entrance)
            for operation in before if trace.listening() else ():
                trace.event("plan.inside", operation=operation.describe())
            inherited = [pair["fd"] for pair in told["inherit_fd"]]
            with Criu(before, inherited, flags=CLONE_NEWNS, cgroup=group) as criu:
                self._give(directories.images)
                told["images_dir_fd"], told["work_dir_fd"] = directories.enter(f"/proc/{criu.pid}/root")
                criu.perform(rpc.RESTORE, told, self._at)
        except Failed as error:
            log = f"{directories.work}/{RESTORE_LOG}"
            raise explained(error, f"cannot restore container {self.record.id}", log) from error
        finally:
            directories.close()
            entrance.close()
            for descriptor in (*self._borrowed, group):
                if descriptor >= 0:
                    os.close(descriptor)
            self._borrowed = []
        if self.pidfd < 0:
            raise Conflict(f"cannot restore container {self.record.id}: criu told of no process")

    def _told(self, directories: Directories, entrance: Entrance) -> tuple[dict[str, Any], list[Inside]]:
        """What criu is asked, and what comes before it."""
        before: list[Inside] = [EnterCgroup(entrance), CoverRecord(self.stage)]
        tree, binds = self.interior.outside(self.root)
        before.append(PutTree(tree, _ROOT, "the root filesystem"))
        names = {}
        for number, (destination, bind, source) in enumerate(binds):
            before.append(PutTree(bind, str(number), source))
            names[os.path.normpath(destination)] = f"{self.stage}/{number}"
        before.append(MakePlaces(tree, self._places(binds)))
        if self.options.cgroups == "ignore" and self.interior.namespaces.new & CLONE_NEWCGROUP:
            before.append(HideCgroups())
        if self.keyring:
            before.append(JoinKeyring(self.keyring))
        if self.interior.process.no_new_privileges:
            before.append(ForbidPrivileges())
        options = self.options
        told = common(options, RESTORE_LOG) | {
            "root": f"{self.stage}/{_ROOT}",
            "rst_sibling": True,
            "evasive_devices": True,
            "tcp_close": options.tcp_close or None,
            "lsm_profile": options.lsm_profile or None,
            "lsm_mount_context": options.lsm_mount_context or None,
            "inherit_fd": self._inherited(directories.images),
            "ext_mnt": self._mounts(directories.images, names),
        }
        if options.cgroups != "ignore":
            told["cg_root"] = [{"ctrl": name, "path": path} for name, path in self.cgroup.roots()]
        return told, before

    def _places(self, binds: list[tuple[str, int, str]]) -> list[tuple[bytes, bool]]:
        """Mount points in the root itself: what is below another mount is there with it."""
        directories = {os.path.normpath(destination): os.fstat(tree).st_mode & 0o170000 == 0o040000
                       for destination, tree, _ in binds}  # fmt: skip
        wanted = [os.path.normpath(mount.destination) for mount in self.interior.config.mounts]
        own = [path for path in wanted if not any(path.startswith(other.rstrip("/") + "/") for other in wanted)]
        return [(os.fsencode(path), directories.get(path, True)) for path in own if path != "/"]

    def _inherited(self, images: str) -> list[dict[str, Any]]:
        """The standard streams by their keys, and the network namespace."""
        stdio = self.interior.stdio
        keys = _noted(f"{images}/{DESCRIPTORS}", list)
        pairs = {}
        for key, given in zip(keys, (stdio.stdin, stdio.stdout, stdio.stderr), strict=False):
            if isinstance(key, str) and key.startswith(("pipe:[", "socket:[", "file[", "tty[")) and key not in pairs:
                pairs[key] = fcntl(given, F_DUPFD_CLOEXEC, _FIRST)
                self._borrowed.append(pairs[key])
        for descriptor, _, _ in self.interior.namespaces.joined:  # only a network can be
            pairs[NETWORK] = descriptor
        return [{"key": key, "fd": descriptor} for key, descriptor in pairs.items()]

    def _mounts(self, images: str, names: dict[str, str]) -> list[dict[str, str]]:
        """What is behind each key of a bind mount."""
        path = f"{images}/{MOUNTS}"
        foreign = not os.path.exists(path)
        noted = {name: name for name in names} if foreign else _noted(path, dict)
        if len(noted) > _KEYS_MAX:
            raise Invalid(f"{images}/{MOUNTS} names {len(noted)} mounts")
        # runc has masks for the host's null device.
        pairs = [{"key": "/dev/null", "val": "/dev/null"}] if foreign else []
        for key, wanted in noted.items():
            if not isinstance(wanted, str) or os.path.normpath(wanted) != wanted:
                raise Invalid(f"{path} names a mount at {wanted!r}")
            above = max((name for name in names if f"{wanted}/".startswith(name + "/")), key=len, default="")
            if not above:
                raise Invalid(
                    f"the checkpoint has a bind mount at {wanted}, the bundle has none",
                    hint="restore it with the mounts that it was made with",
                )
            pairs.append({"key": str(key), "val": names[above] + wanted[len(above) :]})
        return pairs

    def _give(self, images: str) -> None:
        """Let the root of a user namespace read the state too: criu does, first as the caller and then as that."""
        linux = self.interior.config.linux
        if not self.interior.namespaces.has("user"):
            return
        group = next((entry.host_id for entry in linux.gid_mappings if entry.container_id == 0), -1)
        for path in (images, *(entry.path for entry in os.scandir(images) if entry.is_file(follow_symlinks=False))):
            os.chown(path, -1, group)
            os.chmod(path, 0o750 if path == images else 0o640)

    # Following

    def _at(self, moment: str, pid: int, descriptor: int) -> None:
        """What belongs to one of criu's moments."""
        if moment == _TERMINAL:
            self.console = descriptor
        elif moment == _SET_UP:
            self.pid = pid
            hooks.before(self.interior.kept, pid)
        elif moment == _RESTORED:
            # Our own child, and not running yet: the number is its.
            self.pid, self.pidfd = pid, os.pidfd_open(pid)
            config = self.interior.config
            if config.root and config.root.readonly:
                _protect_root(pid)
            self.cgroup.set(config.linux.resources or Resources())
            self.record.keep(self.interior.kept, self.seccomp)
            self.record.keep_process(pid)
            trace.event("container.recorded", pid=pid)

    def undo(self) -> None:
        if self.console >= 0:
            os.close(self.console)
        self.cgroup.kill()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.pid > 0:  # our own child, as soon as criu has told of it
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:  # reaped with criu
                pass
        self.console = self.pid = self.pidfd = -1


def _protect_root(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        child, pidfd = start([ProtectRoot(namespace)])
    finally:
        os.close(namespace)
    os.close(pidfd)
    os.waitpid(child, 0)


def _noted(path: str, kind: type) -> Any:
    """What a file of ours beside criu's says; empty where there is none: somebody else's checkpoint."""
    try:
        with open(path, "rb") as file:
            found = document.parse(file.read(document.SIZE_MAX + 1), path)
    except FileNotFoundError:
        return kind()
    if not isinstance(found, kind):
        raise Invalid(f"{path} is damaged")
    return found
