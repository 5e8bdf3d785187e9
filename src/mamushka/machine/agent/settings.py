"""A bundle's words in the guest protocol's: what a process is, and the steps that build a container's root.

The runtime says where in the guest the sources of bind mounts are (shared directories, images); everything else follows
from the config alone. What a machine's own kernel makes unnecessary or impossible is refused by the runtime, not here.
"""

from __future__ import annotations

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.filesystems import DEVICE_LINKS, DEVICES, NOTHING, OTHERS, PROPAGATION, attributes_of
from mamushka.linux import mount as kernel
from mamushka.linux.capabilities import NUMBERS
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import group, number, raw, text
from mamushka.spec.runtime import Capabilities, Device, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mamushka.linux.seccomp import Filter
    from mamushka.spec.runtime import Config, Process, Rlimit

# asm-generic/resource.h: equal on all our architectures.
_RLIMITS = (
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
    "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip

# The flag of mount(2) beside an attribute; relatime is what Linux takes where nothing is said.
_FLAGS = {
    kernel.MOUNT_ATTR_RDONLY: kernel.MS_RDONLY,
    kernel.MOUNT_ATTR_NOSUID: kernel.MS_NOSUID,
    kernel.MOUNT_ATTR_NODEV: kernel.MS_NODEV,
    kernel.MOUNT_ATTR_NOEXEC: kernel.MS_NOEXEC,
    kernel.MOUNT_ATTR_NODIRATIME: kernel.MS_NODIRATIME,
    kernel.MOUNT_ATTR_NOSYMFOLLOW: kernel.MS_NOSYMFOLLOW,
    kernel.MOUNT_ATTR_NOATIME: kernel.MS_NOATIME,
    kernel.MOUNT_ATTR_STRICTATIME: kernel.MS_STRICTATIME,
}
_SUPERBLOCK = {"sync": kernel.MS_SYNCHRONOUS, "dirsync": kernel.MS_DIRSYNC, "lazytime": kernel.MS_LAZYTIME}
_KINDS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}
# In place of a bundle's devices: all that the guest's own kernel has. See nodes.equipped.
EVERY = (Device("/dev", "every", 0, 0),)


def process_settings(process: Process, filter: Filter | None = None) -> bytes:
    """The field with all that is set before a program is executed."""
    if not process.args or not process.args[0]:
        raise Invalid("process.args names no program")
    if not process.cwd.startswith("/"):
        raise Invalid(f"process.cwd {process.cwd!r} is not an absolute path")
    user = process.user
    fields = [text(words.K_ARG, item) for item in process.args]
    fields += [text(words.K_ENV, item) for item in process.env if "=" in item]
    fields += [text(words.K_CWD, process.cwd), number(words.K_UID, user.uid), number(words.K_GID, user.gid)]
    fields += [number(words.K_GROUP, item) for item in user.additional_gids]
    if user.umask is not None:
        fields.append(number(words.K_UMASK, user.umask))
    if process.capabilities is not None:
        fields += _capabilities(process.capabilities)
    if process.no_new_privileges:
        fields.append(number(words.K_NO_NEW_PRIVILEGES, 1))
    fields += [_limit(limit) for limit in process.rlimits]
    if process.console_size is not None:
        # A size that does not fit the kernel's 16 bits is no terminal's.
        fields.append(number(words.K_ROWS, min(process.console_size.height, 0xFFFF)))
        fields.append(number(words.K_COLUMNS, min(process.console_size.width, 0xFFFF)))
    if process.oom_score_adj is not None:
        fields.append(number(words.K_OOM_SCORE, process.oom_score_adj))
    if filter is not None:
        fields += [raw(words.K_SECCOMP, filter.program), number(words.K_SECCOMP_FLAGS, filter.flags)]
    _refuse(process)
    return group(words.K_SETTINGS, *fields)


def _refuse(process: Process) -> None:
    for name, given in (
        ("apparmorProfile", process.apparmor_profile not in ("", "unconfined")),
        ("selinuxLabel", process.selinux_label),
        ("scheduler", process.scheduler),
        ("ioPriority", process.io_priority),
    ):
        if given:
            raise Unsupported(f"cannot set process.{name} in a machine: its own kernel decides",
                              hint="leave it out, or choose --runtime container")  # fmt: skip


def _capabilities(given: Capabilities) -> list[bytes]:
    return [
        number(key, _mask(names))
        for key, names in (
            (words.K_BOUNDING, given.bounding),
            (words.K_EFFECTIVE, given.effective),
            (words.K_PERMITTED, given.permitted),
            (words.K_INHERITABLE, given.inheritable),
            (words.K_AMBIENT, given.ambient),
        )
    ]


def _mask(names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        if name in NUMBERS:
            mask |= 1 << NUMBERS[name]
        else:  # config.md#linux-process: a warning, and on
            trace.event("privileges.unknown_capability", name=name)
    return mask


def _limit(limit: Rlimit) -> bytes:
    name = limit.type.removeprefix("RLIMIT_")
    if name not in _RLIMITS or name == limit.type:
        raise Invalid(f"{limit.type!r} is not a resource limit", hint="getrlimit(2) lists them: RLIMIT_NOFILE, …")
    if limit.soft > limit.hard:
        raise Invalid(f"the soft {limit.type} {limit.soft} is above the hard one {limit.hard}")
    numbers = (_RLIMITS.index(name), limit.soft, limit.hard)
    return raw(words.K_RLIMIT, b"".join(item.to_bytes(8, "little") for item in numbers))


# Steps


def step(op: int, target: str, *fields: bytes) -> bytes:
    """One thing that is mounted, made or written at ``target``."""
    return group(words.K_STEP, number(words.K_OP, op), text(words.K_TARGET, target), *fields)


def mount(target: str, type: str, source: str, flags: int = 0, data: str = "") -> bytes:
    """Mount a filesystem on a directory, which is made where missing; flags are mount(2)'s."""
    fields = [text(words.K_TYPE, type), text(words.K_SOURCE, source), number(words.K_FLAGS, flags)]
    if data:
        fields.append(text(words.K_DATA, data))
    return step(words.MOUNT, target, *fields)


def wait_for(path: str, seconds: float) -> bytes:
    """Until a device's node is there."""
    return step(words.WAIT, path, number(words.K_TIMEOUT, int(seconds * 1000)))


def partition(disk: str, number_: int, offset: int, length: int) -> bytes:
    """A stretch of a disk, in bytes, as its partition of this number."""
    fields = number(words.K_INDEX, number_), number(words.K_OFFSET, offset), number(words.K_SIZE, length)
    return step(words.PARTITION, disk, *fields)


def file(target: str, content: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> bytes:
    """A small file with this content: hosts, resolv.conf."""
    return step(
        words.WRITE_FILE, target, raw(words.K_DATA, content), number(words.K_MODE, mode), number(words.K_UID, uid),
        number(words.K_GID, gid),
    )  # fmt: skip


def sysctl(name: str, content: str) -> bytes:
    """A kernel parameter, by its dotted name or its path below /proc/sys."""
    path = name if "/" in name else name.replace(".", "/")
    return step(words.SYSCTL, path, text(words.K_DATA, content))


def container_steps(config: Config, sources: Mapping[str, str]) -> list[bytes]:
    """What makes a root filesystem the container's: in this order, before its root becomes "/".

    ``sources`` gives the path in the guest of what is bound at a destination.
    """
    linux = config.linux
    steps = [_mount(item, sources) for item in config.mounts]
    dev = any(item.destination.rstrip("/") == "/dev" for item in config.mounts)
    steps += [_device(item) for item in (DEVICES if dev else ()) + linux.devices]
    if dev:
        steps += [step(words.SYMLINK, f"/dev/{name}", text(words.K_SOURCE, to)) for to, name in DEVICE_LINKS]
    if config.hostname:
        steps.append(step(words.HOSTNAME, config.hostname))
    if config.domainname:
        steps.append(step(words.DOMAINNAME, config.domainname))
    steps += [sysctl(name, content) for name, content in linux.sysctl.items()]
    steps += [step(words.READONLY, path) for path in linux.readonly_paths]
    steps += [step(words.MASK, path) for path in linux.masked_paths]
    return steps


def _mount(item: Mount, sources: Mapping[str, str]) -> bytes:
    flags, setting, clearing, propagation, recursive, bind, data = _options(item)
    if not bind:
        type = "cgroup2" if item.type == "cgroup" else item.type
        filled = item.type == "tmpfs" and "tmpcopyup" in item.options
        if filled:  # read-only only when it has its content
            flags &= ~kernel.MS_RDONLY
        # The name of a mount of cgroups is its type, as with the other wall.
        named = item.source if type != "cgroup2" else ""
        fields = [text(words.K_TYPE, type), text(words.K_SOURCE, named or type), number(words.K_FLAGS, flags)]
        if data:
            fields.append(text(words.K_DATA, ",".join(data)))
        if filled:
            fields += [number(words.K_COPY_UP, 1), number(words.K_SET, setting)]
    else:
        source = sources.get(item.destination)
        if source is None:
            raise Unsupported(f"cannot bind {item.source} at {item.destination}: it is not shared with the machine")
        fields = [text(words.K_SOURCE, source), number(words.K_FLAGS, kernel.MS_BIND)]
        fields += [number(words.K_SET, setting), number(words.K_CLEAR, clearing)]
        if recursive:
            fields.append(number(words.K_RECURSIVE, 1))
    if propagation:
        fields.append(number(words.K_PROPAGATION, propagation))
    return step(words.MOUNT, item.destination, *fields)


def _options(item: Mount) -> tuple[int, int, int, int, bool, bool, list[str]]:
    flags = setting = clearing = propagation = 0
    recursive, bind = False, item.type == "bind"
    data: list[str] = []
    for word in item.options:
        attributes = attributes_of(word)
        if attributes:
            adds, clears, _ = attributes
            setting, clearing = setting & ~clears | adds, clearing & ~adds | clears
        elif word in _SUPERBLOCK:
            flags |= _SUPERBLOCK[word]
        elif word in PROPAGATION:
            propagation = PROPAGATION[word] & ~kernel.MS_REC
        elif word in ("bind", "rbind"):
            bind, recursive = True, recursive or word == "rbind"
        elif word == "tmpcopyup" and item.type == "tmpfs":
            pass
        elif word.partition("=")[0] in OTHERS:
            raise Unsupported(f"cannot mount {item.destination} in a machine with the option {word!r}")
        elif word and word not in NOTHING:
            data.append(word)
    flags |= sum(flag for attribute, flag in _FLAGS.items() if setting & attribute)
    return flags, setting, clearing, propagation, recursive, bind, data


def _device(item: Device) -> bytes:
    if item.type not in _KINDS:
        raise Invalid(f"the device {item.path} is of the unknown type {item.type!r}", hint="one of c, u, b, p")
    return step(
        words.NODE, item.path,
        number(words.K_MODE, _KINDS[item.type] | (0o666 if item.file_mode is None else item.file_mode & 0o7777)),
        number(words.K_DEVICE, item.major << 32 | item.minor & 0xFFFFFFFF),
        number(words.K_UID, item.uid or 0), number(words.K_GID, item.gid or 0),
    )  # fmt: skip


def link(
    mac: bytes = b"",
    name: str = "",
    *,
    new_name: str = "",
    new_mac: bytes = b"",
    mtu: int = 0,
    up: bool = True,
    addresses: Sequence[tuple[bytes, int]] = (),
    routes: Sequence[tuple[bytes, int, bytes]] = (),
    neighbours: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A link of the guest's, found by its hardware address or name, and how it is to be.

    ``addresses`` are (address, prefix length), ``routes`` (destination, prefix length, gateway; an empty gateway is on
    the link, prefix 0 the default route), ``neighbours`` (address, hardware address); addresses as 4 or 16 bytes.
    """
    fields = [raw(words.K_MAC, mac)] if mac else [text(words.K_NAME, name)]
    fields += [text(words.K_NEW_NAME, new_name)] if new_name else []
    fields += [raw(words.K_NEW_MAC, new_mac)] if new_mac else []
    fields += [number(words.K_MTU, mtu)] if mtu else []
    fields.append(number(words.K_UP, up))
    for address, prefix in addresses:
        fields.append(group(words.K_ADDRESS, raw(words.K_IP, address), number(words.K_PREFIX, prefix)))
    for destination, prefix, gateway in routes:
        via = [raw(words.K_GATEWAY, gateway)] if gateway else []
        fields.append(group(words.K_ROUTE, raw(words.K_IP, destination), number(words.K_PREFIX, prefix), *via))
    for address, hardware in neighbours:
        fields.append(group(words.K_NEIGHBOUR, raw(words.K_IP, address), raw(words.K_MAC, hardware)))
    return group(words.K_LINK, *fields)
