"""Which files of the host's are within reach: by name, through mounts, processes, devices, handles and descriptors."""

from __future__ import annotations

import os
from errno import ETXTBSY

from mamushka.engine.audit.probe import ABSENT, CLOSED, Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit.attempts import Attempts
    from mamushka.engine.audit.probe import Ground, Seen

_AT_FDCWD = -100
_F_GETFD, _W_OK = 1, 2
_INHERITED = range(3, 32)
_S_IFBLK, _S_IFCHR = 0o060000, 0o020000
_KMSG = (1, 11)
_STATX_WANTED, _STATX_ROOM = 0x300, 256  # STATX_INO and STATX_SIZE
_STX_INO, _STX_SIZE, _STX_MAJOR = 32, 40, 136
# A node is made where nodes may be, in the workload's own memory.
_NODE = b"/dev/mamushka-audit"
_PROGRAM = "/usr/bin/env"
_O_WRONLY = 1


def _places(ground: Ground) -> tuple[str, ...]:
    """Where the canary's file might be: also in the roots of other processes."""
    path = ground.canaries.file
    roots = ("/proc/1/root", "/proc/1/cwd", f"/proc/{ground.canaries.pid}/root")
    return tuple(dict.fromkeys((*ground.places(path), *(root + path for root in roots))))


def _try_file(attempts: Attempts, ground: Ground) -> None:
    for place in _places(ground):
        attempts.read(f"file {place}", place.encode(), 64)
        attempts.writable(f"write {place}", place.encode())


def _judge_file(seen: Seen, ground: Ground) -> str:
    found = [place for place in _places(ground) if seen.content(f"file {place} read") == ground.canaries.content]
    return f"a file of the host's, as {found[0]}" if found else ""


def _judge_write(seen: Seen, ground: Ground) -> str:
    for place in _places(ground):
        if seen.content(f"file {place} read") == ground.canaries.content and seen.done(f"write {place}"):
            return f"a file of the host's can be written, as {place}"
    return ""


def _try_mounts(attempts: Attempts, ground: Ground) -> None:
    for mount in ground.mounts:
        if mount.kind == "bind":
            place = mount.destination.encode()
            attempts.step(f"mount {mount.destination}", "faccessat", _AT_FDCWD, place, os.R_OK)
            attempts.step(f"mount-write {mount.destination}", "faccessat", _AT_FDCWD, place, _W_OK)


def _judge_mounts(seen: Seen, ground: Ground) -> str:
    return ", ".join(
        f"{mount.source} at {mount.destination}" for mount in ground.mounts if _has(seen, "mount", mount.destination)
    )


def _judge_mount_writes(seen: Seen, ground: Ground) -> str:
    places = [mount for mount in ground.mounts if _has(seen, "mount-write", mount.destination)]
    return ", ".join(f"{mount.source} at {mount.destination}" for mount in places)


def _has(seen: Seen, step: str, place: str) -> bool:
    return seen.done(f"{step} {place}")


def _try_programs(attempts: Attempts, _: Ground) -> None:
    status = attempts.room
    with attempts.where(attempts.step("program", "statx", _AT_FDCWD, _PROGRAM.encode(), 0, _STATX_WANTED, status)):
        attempts.copy("program read", status, _STATX_ROOM)


def _judge_programs(seen: Seen, ground: Ground) -> str:
    """The inode at the usual place is the host's own. Its device has a number of the machine's where it is served."""
    found = seen.content("program read")
    if not found:
        return ""
    try:
        own = os.stat(_PROGRAM)
    except OSError:
        return ""
    number, size = (int.from_bytes(found[at : at + 8], "little") for at in (_STX_INO, _STX_SIZE))
    same_place = ground.machine or _device(found) == (os.major(own.st_dev), os.minor(own.st_dev))
    same = same_place and (number, size) == (own.st_ino, own.st_size)
    return "this machine's programs, to be read" if same else ""


def _device(status: bytes) -> tuple[int, int]:
    return (
        int.from_bytes(status[_STX_MAJOR : _STX_MAJOR + 4], "little"),
        int.from_bytes(status[_STX_MAJOR + 4 : _STX_MAJOR + 8], "little"),
    )


def _try_devices(attempts: Attempts, ground: Ground) -> None:
    for name, kind, (major, minor) in (("disk", _S_IFBLK, ground.disk), ("kmsg", _S_IFCHR, _KMSG)):
        number = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
        with attempts.where(attempts.step(f"node {name}", "mknodat", _AT_FDCWD, _NODE, kind | 0o600, number)):
            error, fd = attempts.open(f"device {name}", _NODE)
            with attempts.where(error):
                attempts.close(fd)
            attempts.script.attempt("unlinkat", _AT_FDCWD, _NODE, 0)


def _judge_devices(seen: Seen, _: Ground) -> str:
    found = [
        text
        for name, text in (("disk", "a disk of the host's"), ("kmsg", "the kernel's log"))
        if seen.done(f"device {name}")
    ]
    return f"{' and '.join(found)}, by a device node" if found else ""


def _try_handle(attempts: Attempts, _: Ground) -> None:
    """Whether it may is asked before the handle is read, and there is none: EFAULT. fs/fhandle.c, handle_to_path."""
    attempts.step("handle", "open_by_handle_at", _AT_FDCWD, 0, 0)


def _judge_handle(seen: Seen, _: Ground) -> str:
    return "files can be opened by number, past every mount" if seen.allowed("handle") else ""


def _try_descriptors(attempts: Attempts, _: Ground) -> None:
    for number in _INHERITED:
        attempts.step(f"descriptor {number}", "fcntl", number, _F_GETFD)


def _judge_descriptors(seen: Seen, _: Ground) -> str:
    found = ", ".join(str(number) for number in _INHERITED if seen.done(f"descriptor {number}"))
    return f"descriptors {found} were open from the start" if found else ""


def _try_binary(attempts: Attempts, ground: Ground) -> None:
    """An executable that runs cannot be written; who hears that was allowed to (CVE-2019-5736)."""
    for pid in (os.getpid(), ground.canaries.pid):
        attempts.writable(f"binary {pid}", f"/proc/{pid}/exe".encode())


def _judge_binary(seen: Seen, ground: Ground) -> str:
    """In a process namespace of its own these numbers are nobody's, or those of the workload's own processes."""
    outsider = ground.canaries.argument in seen.content("arguments read")
    allowed = [pid for pid in (os.getpid(), ground.canaries.pid) if seen.allowed(f"binary {pid}")]
    return "executables of the host's processes can be written" if outsider and allowed else ""


PROBES = (
    # First, while no descriptor is the probe's own.
    Probe(
        "descriptors",
        "files",
        60,
        "inherited descriptors",
        "an open directory of the host's is a way out (CVE-2024-21626)",
        "nothing of Mamushka's opens it; report it",
        _judge_descriptors,
        _try_descriptors,
    ),
    Probe(
        "host-file",
        "files",
        60,
        "files of the host, by name",
        "every secret on its disks",
        "no -v of directories that hold it",
        _judge_file,
        _try_file,
    ),
    Probe(
        "host-file-write",
        "files",
        30,
        "files of the host, to be written",
        "whoever writes them owns the machine",
        "-v …:ro",
        _judge_write,
    ),
    Probe(
        "mounts",
        "files",
        10,
        "directories that were handed over",
        "what is there is not behind the wall",
        "leave out -v, or use a volume",
        _judge_mounts,
        _try_mounts,
    ),
    Probe(
        "mounts-write",
        "files",
        10,
        "the same, to be written",
        "what others execute or trust can be changed",
        "-v …:ro",
        _judge_mount_writes,
    ),
    Probe(
        "programs",
        "files",
        5,
        "programs of the host",
        "they tell what is installed, and which flaws it has",
        "another image than host",
        _judge_programs,
        _try_programs,
    ),
    Probe(
        "devices",
        "files",
        60,
        "devices of the host",
        "a disk holds every file",
        "no --privileged, no --device-cgroup-rule; --cap-drop MKNOD",
        _judge_devices,
        _try_devices,
    ),
    Probe(
        "handles",
        "files",
        60,
        "files by handle",
        "they lead past every mount to any file (shocker)",
        "no --cap-add DAC_READ_SEARCH",
        _judge_handle,
        _try_handle,
    ),
    Probe(
        "binaries",
        "files",
        60,
        "executables of the host's processes",
        "whoever overwrites one is executed by the host (CVE-2019-5736)",
        "no --pid host",
        _judge_binary,
        _try_binary,
    ),
)

assert ETXTBSY not in CLOSED | ABSENT
