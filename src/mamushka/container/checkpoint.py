"""Writing a running container down through criu.

A container ends where the host begins, and criu must be told where that is: bind mounts, a network namespace that was
joined, and the standard streams, whose other ends are somebody else's, are *external*. criu writes down a key for
each, and ``restore`` says what is behind the key. Beside criu's files two of ours remember the keys:

    descriptors.json   of the standard streams, as runc has it: "pipe:[n]" and the like, or a path
    mounts.json        of the bind mounts: where they are inside, and where that is in the bundle's words
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.container.criu import rpc
from mamushka.container.criu.failure import Failed, explained
from mamushka.container.criu.service import Criu, check_feature, version
from mamushka.container.defaults import LANDLOCK
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.linux.fd import open_in_root
from mamushka.linux.process import CLONE_NEWNET, initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mamushka.container.cgroups.cgroup import Cgroup
    from mamushka.record import Kept
    from mamushka.runtime import CheckpointOptions
    from mamushka.spec.runtime import Config

DESCRIPTORS, MOUNTS = "descriptors.json", "mounts.json"
NETWORK = "extRootNetNS"  # the key of a joined network namespace, as runc has it
LOG_LEVEL = 4
_TERMINALS = range(136, 144)  # device majors of pseudo-terminals
# The file must be named without a directory; it lies in the work directory.
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"


class Directories:
    """The state's directory and the one for logs; open, for criu to find them by number among this process's."""

    def __init__(self, images: str, work: str, *, make: bool) -> None:
        self.images, self.work = os.path.realpath(images), os.path.realpath(work or images)
        if make:
            os.makedirs(self.images, 0o700, exist_ok=True)
        elif not os.path.isdir(self.images):
            raise NotFound(f"there is no checkpoint at {images}: no such directory")
        os.makedirs(self.work, 0o700, exist_ok=True)
        self.open: list[int] = []

    def enter(self, root: str = "") -> tuple[int, int]:
        """Open both below a root: criu mounts things in the latter, which must be of its own mount namespace."""
        for path in (self.images, self.work):
            self.open.append(os.open(root + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return self.open[0], self.open[1]

    def close(self) -> None:
        """Let go of them."""
        for descriptor in self.open:
            os.close(descriptor)
        self.open = []


def common(options: CheckpointOptions, log: str) -> dict[str, Any]:
    """What both directions tell criu."""
    if options.cgroups and options.cgroups not in rpc.CGROUP_MODES:
        raise Invalid(f"there is no mode {options.cgroups!r} for cgroups", hint=f"one of {' '.join(rpc.CGROUP_MODES)}")
    if options.network_lock and options.network_lock not in rpc.NETWORK_LOCKS:
        raise Invalid(
            f"there is no network lock {options.network_lock!r}", hint=f"one of {' '.join(rpc.NETWORK_LOCKS)}"
        )
    return {
        "log_level": LOG_LEVEL,
        "log_file": log,
        "notify_scripts": True,
        "orphan_pts_master": True,
        "manage_cgroups": True,
        "manage_cgroups_mode": rpc.CGROUP_MODES[options.cgroups or "soft"],
        "ext_unix_sk": options.ext_unix_sk,
        "tcp_established": options.tcp_established,
        "tcp_skip_in_flight": options.tcp_skip_in_flight or None,
        "shell_job": options.shell_job,
        "file_locks": options.file_locks,
        "link_remap": options.link_remap or None,
        "auto_dedup": options.auto_dedup or None,
        "lazy_pages": options.lazy_pages or None,
        "empty_ns": CLONE_NEWNET if options.empty_network else None,
        "network_lock": rpc.NETWORK_LOCKS.get(options.network_lock),
    }


def dump(kept: Kept, pid: int, cgroup: Cgroup, directory: str, options: CheckpointOptions) -> None:
    """Have criu write the processes below ``pid`` into the directory; with pre_dump their memory alone."""
    check(kept.config)
    _check_privileges(kept.config, cgroup)
    if options.lazy_pages:
        check_feature("lazy_pages", "leave the memory to be fetched later")
    if options.pre_dump or options.parent:
        check_feature("mem_track", "write the memory that has changed alone")
    directories = Directories(directory, options.work, make=True)
    try:
        told = {**common(options, DUMP_LOG), **_memory(options), **_interior(kept, pid, cgroup)}
        told["images_dir_fd"], told["work_dir_fd"] = directories.enter()
        told |= _keys(kept.config, pid, directories.images) if not options.pre_dump else {}
        inherited = [options.status_fd] if options.status_fd >= 0 else []
        with Criu(inherited=inherited) as criu:
            criu.perform(rpc.PRE_DUMP if options.pre_dump else rpc.DUMP, told)
    except Failed as error:
        log = f"{directories.work}/{DUMP_LOG}"
        raise explained(error, f"cannot checkpoint container {kept.id}", log) from error
    finally:
        directories.close()


def check(config: Config) -> None:
    """Unsupported for a container of which something would come back weaker, or not shared any more."""
    if os.geteuid() or not initial():
        raise Unsupported(
            "cannot checkpoint or restore a container without root: criu needs rights of the host's root",
            hint="run the workload as root, if it is to be checkpointed",
        )
    if LANDLOCK in config.annotations:
        raise Unsupported(
            "cannot checkpoint or restore a container behind Landlock: criu does not know it, and it would be lost",
            hint="leave the policy out for a workload that is to be checkpointed",
        )
    linux = config.linux
    for what, asked in (
        ("a seccomp agent", linux.seccomp and linux.seccomp.listener_path),
        ("network devices of the host's", linux.net_devices),
        ("a class of service", linux.intel_rdt),
        ("a memory policy", linux.memory_policy),
        ("a personality", linux.personality),
    ):
        if asked:
            raise Unsupported(f"cannot checkpoint or restore a container with {what}: criu would leave that out")
    for namespace in config.linux.namespaces:
        if namespace.path and namespace.type != "network":
            raise Unsupported(
                f"cannot checkpoint or restore a container that has joined the {namespace.type} namespace "
                f"{namespace.path}: it would come back with one of its own",
                hint="of joined namespaces only that of the network can be left outside",
            )


def _check_privileges(config: Config, cgroup: Cgroup) -> None:
    """Unsupported where a process has given up more than its container did, and criu would forget it."""
    if config.process is None or config.process.no_new_privileges:
        return  # all have it, and restore sets it
    for pid in cgroup.processes():
        try:
            with open(f"/proc/{pid}/status") as file:
                renounced = "NoNewPrivs:\t1\n" in file.read()
        except FileNotFoundError:  # it has ended
            continue
        if renounced and version() < (3, 19):
            raise Unsupported(
                f"cannot checkpoint: process {pid} has set no_new_privs for itself, which criu would forget",
                hint="criu 3.19 or later remembers it",
            )


def _memory(options: CheckpointOptions) -> dict[str, Any]:
    """Where the memory goes, and how much of it."""
    told: dict[str, Any] = {"leave_running": options.leave_running or options.pre_dump}
    if options.parent:
        told["parent_img"] = options.parent
    if options.pre_dump or options.parent:
        told["track_mem"] = True
    if options.page_server:
        address, colon, port = options.page_server.rpartition(":")
        if not colon or not port.isdigit():
            raise Invalid(f"the page server {options.page_server!r} is not ADDRESS:PORT")
        told["ps"] = {"address": address.strip("[]"), "port": int(port)}
    if options.status_fd >= 0:
        told["status_fd"] = options.status_fd
    return told


def _interior(kept: Kept, pid: int, cgroup: Cgroup) -> dict[str, Any]:
    freezer = cgroup.freezer()
    root = kept.config.root.path if kept.config.root else "rootfs"
    return {
        "pid": pid,
        "root": os.path.normpath(os.path.join(kept.bundle, root)),
        "freeze_cgroup": freezer if freezer and os.path.isdir(freezer) else None,
    }


# What lies outside


def _keys(config: Config, pid: int, images: str) -> dict[str, Any]:
    """What criu is to leave out; noted beside its files."""
    binds = dict(_binds(config, pid))
    streams = _streams(pid)
    external = [key for key in streams if key.startswith(("file[", "tty[", "unix["))]
    shown = [key.replace("unix[", "socket:[", 1) for key in streams]
    for namespace in config.linux.namespaces:
        if namespace.type == "network" and namespace.path:
            external.append(f"net[{os.stat(f'/proc/{pid}/ns/net').st_ino}]:{NETWORK}")
    _note(f"{images}/{DESCRIPTORS}", shown)
    _note(f"{images}/{MOUNTS}", binds)
    return {
        "external": list(dict.fromkeys(external)),
        "ext_mnt": [{"key": inside, "val": inside} for inside in binds],
    }


def _note(path: str, content: object) -> None:
    with open(path, "wb") as file:
        file.write(document.dump(content))


def _binds(config: Config, pid: int) -> Iterator[tuple[str, str]]:
    """(where it is mounted, where the bundle wants it) of what the host has mounted inside.

    Of mounts below them those are the host's that the host knows: what covers them (masks) was made for the container.
    """
    inside = {number: (place, device) for number, place, device in mountinfo(pid)}
    known = {device for _, _, device in mountinfo(os.getpid())}
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for wanted in sorted({os.path.normpath(mount.destination) for mount in config.mounts}):
            place = inside[_mount_id(root, wanted)][0]
            yield place, wanted
            for further, device in inside.values():
                if further.startswith(place + "/") and device in known:
                    yield further, wanted + further[len(place) :]
        if any(namespace.type == "user" for namespace in config.linux.namespaces):
            # Its devices are the host's: it may make none.
            yield from ((place, place) for place, device in inside.values() if place[:5] == "/dev/" and device in known)
    finally:
        os.close(root)


def _mount_id(root: int, path: str) -> int:
    descriptor = open_in_root(root, os.fsencode(path), os.O_PATH)
    try:
        return _fdinfo(f"/proc/self/fdinfo/{descriptor}")
    finally:
        os.close(descriptor)


def _fdinfo(path: str) -> int:
    """The mount that a descriptor is on. proc_pid_fdinfo(5)."""
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def mountinfo(pid: int) -> Iterator[tuple[int, str, str]]:
    """(mount id, where it is, device) of each mount that a process sees. proc_pid_mountinfo(5)."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            yield int(fields[0]), os.fsdecode(_plain(fields[4])), fields[2].decode()


def _plain(path: bytes) -> bytes:
    """Without the octal escapes of blanks and backslashes."""
    for escaped, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escaped, byte)
    return path


def _streams(pid: int) -> list[str]:
    """The keys of a process's standard streams; for what is inside, its path."""
    inside = {number for number, _, _ in mountinfo(pid)}
    return [_stream(pid, number, inside) for number in range(3)]


def _stream(pid: int, number: int, inside: set[int]) -> str:
    try:
        link = os.readlink(f"/proc/{pid}/fd/{number}")
        status = os.stat(f"/proc/{pid}/fd/{number}")
        mount = _fdinfo(f"/proc/{pid}/fdinfo/{number}")
    except FileNotFoundError:  # closed
        return ""
    if link.startswith("socket:["):
        return f"unix[{status.st_ino}]"
    if mount in inside or link.startswith("pipe:["):
        return link
    kind = status.st_mode & 0o170000
    if kind == 0o020000 and os.major(status.st_rdev) in _TERMINALS:
        return f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
    return f"file[{mount:x}:{status.st_ino:x}]"
