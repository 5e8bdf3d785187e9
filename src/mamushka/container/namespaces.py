"""Which namespaces are new, which are joined, and what is set in them."""

from __future__ import annotations

import os
from errno import EINVAL

from mamushka.container.operation import OPENED, PROC, Inside
from mamushka.errors import Denied, Invalid, NotFound, Unsupported
from mamushka.linux.abi import sizeof
from mamushka.linux.fd import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, open_how
from mamushka.linux.process import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.linux.script import Script
    from mamushka.spec.runtime import IDMapping, Linux, TimeOffset

FLAGS = {
    "user": CLONE_NEWUSER,
    "pid": CLONE_NEWPID,
    "mount": CLONE_NEWNS,
    "network": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
# Where the name of its file below /proc/PID/ns is another.
FILES = {"network": "net", "mount": "mnt"}
# Namespaces that a process enters only by being born in them: somebody else must enter them first.
_BORN = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWTIME

# Which namespace makes a sysctl the container's own. config-linux.md#sysctl.
_SYSCTLS = {
    "kernel.msgmax": "ipc",
    "kernel.msgmnb": "ipc",
    "kernel.msgmni": "ipc",
    "kernel.sem": "ipc",
    "kernel.shmall": "ipc",
    "kernel.shmmax": "ipc",
    "kernel.shmmni": "ipc",
    "kernel.shm_rmid_forced": "ipc",
    "kernel.hostname": "uts",
    "kernel.domainname": "uts",
}
_SYSCTL_TREES = {"fs.mqueue.": "ipc", "net.": "network", "user.": "user"}


class Namespaces:
    """The namespaces of one container; owns the descriptors of those that are joined."""

    def __init__(self, linux: Linux) -> None:
        self.new = 0
        self.joined: list[tuple[int, int, str]] = []  # (descriptor, flag, path)
        seen: set[str] = set()
        try:
            for namespace in linux.namespaces:
                self._add(namespace.type, namespace.path, seen)
            self._check(linux)
        except BaseException:
            self.close()
            raise

    def _add(self, kind: str, path: str, seen: set[str]) -> None:
        flag = FLAGS.get(kind)
        if flag is None:
            raise Invalid(f"there is no namespace of the type {kind!r}", hint=f"the types are {', '.join(FLAGS)}")
        if kind in seen:
            raise Invalid(f"the {kind} namespace is asked for twice")
        seen.add(kind)
        if not path:
            self.new |= flag
            return
        if not path.startswith("/"):
            raise Invalid(f"the path {path!r} of the {kind} namespace is not absolute")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"cannot join the {kind} namespace {path}: no such file or directory") from error
        if os.path.samestat(os.fstat(descriptor), os.stat(f"/proc/self/ns/{FILES.get(kind, kind)}")):
            os.close(descriptor)  # the caller's own: shared, as if it had not been named
            return
        self.joined.append((descriptor, flag, path))
        if _kind(descriptor) != flag:
            raise Invalid(f"cannot join the {kind} namespace {path}: it is no namespace of that type")

    def _check(self, linux: Linux) -> None:
        if not self.has("mount"):
            raise Unsupported(
                "a container needs a mount namespace apart from the host's", hint='add {"type": "mount"} to namespaces'
            )
        if (linux.uid_mappings or linux.gid_mappings) and not self.has("user"):
            raise Invalid("id mappings are given without a user namespace")
        if self.new & CLONE_NEWUSER and not (linux.uid_mappings and linux.gid_mappings):
            raise Invalid("a new user namespace needs linux.uidMappings and linux.gidMappings")
        if linux.time_offsets and not self.new & CLONE_NEWTIME:
            raise Invalid("time offsets are given without a new time namespace")
        for clock, offset in linux.time_offsets.items():
            if clock not in ("monotonic", "boottime") or offset.nanosecs >= 10**9:
                raise Invalid(
                    f"the clock {clock!r} cannot be moved by {offset.secs} s and {offset.nanosecs} ns",
                    hint="the clocks are monotonic and boottime, and a second has 10⁹ ns",
                )

    def has(self, kind: str) -> bool:
        """Whether the container has this namespace apart from the caller's."""
        return bool(self.new & FLAGS[kind]) or any(flag == FLAGS[kind] for _, flag, _ in self.joined)

    @property
    def born(self) -> list[tuple[int, int, str]]:
        """The joined ones that must be entered before the container's process is made; the user's first."""
        return sorted((entry for entry in self.joined if entry[1] & _BORN), key=lambda entry: entry[1] != CLONE_NEWUSER)

    @property
    def entered(self) -> list[tuple[int, int, str]]:
        """The joined ones that the container's process enters itself."""
        return [entry for entry in self.joined if not entry[1] & _BORN]

    def close(self) -> None:
        """Let go of the joined namespaces' files."""
        for descriptor, _, _ in self.joined:
            os.close(descriptor)
        self.joined = []


def _kind(descriptor: int) -> int:
    """The CLONE_NEW… of a namespace's file; 0 for another file."""
    from mamushka.linux.nsfs import NS_GET_NSTYPE

    try:
        return NS_GET_NSTYPE(descriptor)
    except OSError:
        return 0


class Join(Inside):
    """Enter an existing namespace."""

    __slots__ = ("descriptor", "flag", "path")
    settled = True

    def __init__(self, descriptor: int, flag: int, path: str) -> None:
        self.descriptor, self.flag, self.path = descriptor, flag, path

    def describe(self) -> str:
        return f"join the namespace {self.path}"

    def write(self, script: Script) -> None:
        script.call("setns", script.descriptor(self.descriptor), self.flag)


class HideCgroups(Inside):
    """A new cgroup namespace; its root is the cgroup in which the process is by now."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "unshare the cgroup namespace"

    def write(self, script: Script) -> None:
        script.call("unshare", CLONE_NEWCGROUP)


class SetNames(Inside):
    """The host name and NIS domain name; an empty one stays as it is."""

    __slots__ = ("domainname", "hostname")
    settled = True

    def __init__(self, hostname: str, domainname: str) -> None:
        self.hostname, self.domainname = os.fsencode(hostname), os.fsencode(domainname)

    def describe(self) -> str:
        return f"set the host name {os.fsdecode(self.hostname)!r} and domain name {os.fsdecode(self.domainname)!r}"

    def write(self, script: Script) -> None:
        if self.hostname:
            script.call("sethostname", self.hostname, len(self.hostname))
        if self.domainname:
            script.call("setdomainname", self.domainname, len(self.domainname))


class SetSysctls(Inside):
    """Kernel settings of the container's namespaces, written below the procfs that we mounted, never by path."""

    __slots__ = ("mounted", "settings")
    settled = True

    def __init__(self, settings: Mapping[str, str], *, mounted: bool) -> None:
        self.mounted = mounted  # whether there is a procfs of ours
        self.settings = [(b"sys/" + _sysctl_path(name), os.fsencode(text)) for name, text in settings.items()]

    def describe(self) -> str:
        return "sysctl " + " ".join(f"{os.fsdecode(path)[4:]}={os.fsdecode(text)}" for path, text in self.settings)

    def write(self, script: Script) -> None:
        if not self.mounted:
            script.fail(EINVAL, "=sysctls need a mount of type proc in the bundle")
            return
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
        how = open_how(flags=os.O_WRONLY | os.O_CLOEXEC, resolve=resolve)
        for path, text in self.settings:
            name = os.fsdecode(path)
            script.call("openat2", PROC, path, how, sizeof(how), into=OPENED, about=f": {name!r}")
            script.call("write", OPENED, text, len(text), about=f": {os.fsdecode(text)!r}: {name!r}")
            script.call("close", OPENED)


def _sysctl_path(name: str) -> bytes:
    """net.ipv4.ip_forward or net/ipv4/ip_forward as a path; dots in a slashed name are an interface's."""
    dotted = "/" not in name or 0 <= name.find(".") < name.find("/")
    return os.fsencode(name.replace("/", "\0").replace(".", "/").replace("\0", ".") if dotted else name)


def check_sysctls(settings: Mapping[str, str], namespaces: Namespaces) -> None:
    """Refuse what would change the host: only sysctls of the container's own namespaces may be set."""
    for name in settings:
        if not {b"", b".", b".."}.isdisjoint(_sysctl_path(name).split(b"/")):
            raise Invalid(f"{name!r} is not the name of a sysctl")
        dotted = os.fsdecode(_sysctl_path(name)).replace("/", ".")
        tree = next((tree for tree in _SYSCTL_TREES if dotted.startswith(tree)), "")
        kind = _SYSCTL_TREES[tree] if tree else _SYSCTLS.get(dotted, "")
        if not kind:
            raise Invalid(f"the sysctl {name} belongs to no namespace: setting it would change the host")
        if not namespaces.has(kind):
            raise Invalid(
                f"the sysctl {name} would change the host: the container has no {kind} namespace of its own",
                hint=f"give it a private {kind} namespace",
            )


def map_ids(pid: int, uids: tuple[IDMapping, ...], gids: tuple[IDMapping, ...]) -> None:
    """Give a new user namespace, in which ``pid`` is, its ids. Denied where the caller may not."""
    from mamushka.linux import procfs

    for file, mappings in (("uid_map", uids), ("gid_map", gids)):
        text = "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in mappings)
        try:
            procfs.write(f"{pid}/{file}", text.encode())
        except OSError as error:
            kind = Denied if isinstance(error, PermissionError) else Invalid
            raise kind(f"cannot set {file} to {text.strip()!r}: {error.strerror}") from error


def set_time_offsets(offsets: Mapping[str, TimeOffset]) -> None:
    """Move the clocks of the time namespace that the caller's next child will be born in."""
    from mamushka.linux import procfs

    text = "".join(f"{clock} {offset.secs} {offset.nanosecs}\n" for clock, offset in offsets.items())
    procfs.write("self/timens_offsets", text.encode())
