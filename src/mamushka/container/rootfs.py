"""The container's root: how it is entered, and how every path in it is found without being fooled.

The tree below the root was filled by a stranger. So a path in it is only ever resolved by openat2 with
RESOLVE_IN_ROOT against the root's descriptor, what it named is kept as a descriptor, and it is never opened by
path a second time.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EEXIST, EINVAL, ENOENT, ENOTDIR

from mamushka.container.operation import BACK, CURRENT, DIRECTORY, EMPTY, NULL, OPENED, ROOT, TARGET, TREE, Inside
from mamushka.linux.abi import sizeof
from mamushka.linux.fd import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    open_how,
)
from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_SIZE,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    mount_attr,
)
from mamushka.linux.script import NEXT, SELF, STATUS, Label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mamushka.linux.script import Script, Variable
    from mamushka.spec.runtime import Device

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
COPY = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
# A path of more components than this is no mistake of a person: PATH_MAX is 4096.
_COMPONENTS_MAX = 256
_HOW_SIZE = sizeof(open_how)
# struct statx, include/uapi/linux/stat.h: where its fields lie, and which are to be filled.
_STATX_BASIC_STATS = 0x7FF
MODE, _RDEV_MAJOR, _RDEV_MINOR = STATUS + 28, STATUS + 128, STATUS + 132
S_IFMT, S_IFDIR, S_IFREG, S_IFCHR = 0o170000, 0o040000, 0o100000, 0o020000


def about(path: bytes) -> str:
    """What a failed call says about a path."""
    return f": {os.fsdecode(path)!r}"


def components(path: bytes) -> list[bytes]:
    """The names of a path, without empty ones and dots; ``..`` goes up, at the root nowhere."""
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    if len(names) > _COMPONENTS_MAX:
        raise OSError(EINVAL, f"a path of {len(names)} components", os.fsdecode(path[:80]))
    return names


def open_in_root(
    script: Script,
    path: bytes,
    flags: int,
    into: Variable,
    on: Mapping[int, Label | int] | None = None,
    *,
    root: Variable = ROOT,
) -> None:
    """Open ``path`` as a process sees it whose root is the container's, or another; see ``linux.fd.open_in_root``."""
    how = open_how(flags=flags | os.O_CLOEXEC, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    # EAGAIN: a rename raced with the resolution.
    errors = {EAGAIN: SELF, **(on or {})}
    script.call("openat2", root, path or b".", how, _HOW_SIZE, into=into, on=errors, about=path)


def make_directory(script: Script, path: bytes, into: Variable, mode: int = 0o755) -> None:
    """The directory at ``path`` inside, made with its parents where missing; an O_PATH descriptor."""
    missing, there = Label(), Label()
    open_in_root(script, path, _DIRECTORY, into, {ENOENT: missing})
    script.jump(there)
    script.mark(missing)
    open_in_root(script, b".", _DIRECTORY, into)
    so_far = b""
    for name in components(path):
        script.call("mkdirat", into, name, mode, on={EEXIST: NEXT}, about=path)
        script.call("close", into)
        so_far += b"/" + name
        open_in_root(script, so_far, _DIRECTORY, into)
    script.mark(there)


def make_target(script: Script, path: bytes, into: Variable, *, directory: bool) -> None:
    """Where something can be mounted: what is at ``path``, or a new empty directory or file; O_PATH."""
    if directory:
        make_directory(script, path, into)
        return
    missing, there = Label(), Label()
    open_in_root(script, path, os.O_PATH, into, {ENOENT: missing})
    script.jump(there)
    script.mark(missing)
    *parents, name = components(path) or [b"."]
    make_directory(script, b"/".join(parents), CURRENT)
    make = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    script.call("openat", CURRENT, name, make, 0o644, into=into, about=path)
    script.call("close", into)
    script.call("openat", CURRENT, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, into=into, about=path)
    script.call("close", CURRENT)
    script.mark(there)


def attach(script: Script, tree: Variable | int, target: Variable, path: bytes = b"") -> None:
    """Put a detached mount on what a descriptor names; the path is where that lies."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    script.call("move_mount", tree, b"", target, b"", flags, about=path)


def set_attributes(
    script: Script, tree: Variable, *, set: int = 0, clear: int = 0, propagation: int = 0, flags: int = 0
) -> None:
    """Change a mount that a descriptor names."""
    attributes = mount_attr(attr_set=set, attr_clr=clear, propagation=propagation)
    script.call("mount_setattr", tree, b"", AT_EMPTY_PATH | flags, attributes, MOUNT_ATTR_SIZE)


def look(script: Script, directory: Variable, name: bytes) -> None:
    """Fill STATUS with what is at a name, or for an empty one with what the descriptor itself names."""
    flags = AT_SYMLINK_NOFOLLOW | (0 if name else AT_EMPTY_PATH)
    script.call("statx", directory, name, flags, _STATX_BASIC_STATS, STATUS, about=name)


def expect_device(script: Script, kind: int, number: int, otherwise: Label) -> None:
    """Go on when STATUS is of this device."""
    script.compare(MODE, S_IFMT, kind, otherwise)
    script.compare(_RDEV_MAJOR, -1, os.major(number), otherwise)
    script.compare(_RDEV_MINOR, -1, os.minor(number), otherwise)


class EnterRoot(Inside):
    """Cut the ties to the host's mounts and put the root filesystem, a detached tree, into this namespace."""

    __slots__ = ("readable", "target", "tree")
    settled = True

    def __init__(self, tree: int, target: bytes, readable: str) -> None:
        self.tree, self.target, self.readable = tree, target, readable

    def describe(self) -> str:
        return f"mount the root filesystem {self.readable}"

    def write(self, script: Script) -> None:
        # What follows must not appear on the host; what the host unmounts may vanish here.
        script.call("mount_setattr", AT_FDCWD, b"/", AT_RECURSIVE, mount_attr(propagation=MS_SLAVE), MOUNT_ATTR_SIZE)
        script.descriptor(self.tree, ROOT)
        script.call("move_mount", ROOT, b"", AT_FDCWD, self.target, MOVE_MOUNT_F_EMPTY_PATH, about=self.target)


class PivotRoot(Inside):
    """Make the root filesystem "/" and let go of the host's."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "pivot_root, and detach the host's root"

    def write(self, script: Script) -> None:
        script.call("fchdir", ROOT)
        # The old root comes to lie on top of the new one at ".", so no directory inside is needed for it.
        script.call("pivot_root", b".", b".")
        script.call("umount2", b".", MNT_DETACH)
        script.call("chdir", b"/")


class MoveRoot(Inside):
    """Where pivot_root is impossible (an initramfs): the root lies over "/" already, so chroot. --no-pivot."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "chroot into the root filesystem"

    def write(self, script: Script) -> None:
        script.call("fchdir", ROOT)
        script.call("chroot", b".")
        script.call("chdir", b"/")


class MakeDirectory(Inside):
    """Where the program is to begin, while the root filesystem can still be written to."""

    __slots__ = ("path",)
    about = DIRECTORY
    settled = True

    def __init__(self, path: str) -> None:
        self.path = os.fsencode(path)

    def describe(self) -> str:
        return f"mkdir -p {os.fsdecode(self.path)}"

    def write(self, script: Script) -> None:
        make_directory(script, self.path, TARGET)
        script.call("close", TARGET)


class SetRoot(Inside):
    """The root mount's own properties, once nothing inside must be made any more."""

    __slots__ = ("propagation", "readonly")
    settled = True

    def __init__(self, *, readonly: bool, propagation: int) -> None:
        self.readonly, self.propagation = readonly, propagation

    def describe(self) -> str:
        return "make the root filesystem read-only" if self.readonly else "set the root filesystem's propagation"

    def write(self, script: Script) -> None:
        if self.readonly:
            set_attributes(script, ROOT, set=MOUNT_ATTR_RDONLY)
        if self.propagation:
            # All below is private, but what its own options made otherwise, which stays so: only sharing reaches down.
            deep = self.propagation & MS_REC and self.propagation & MS_SHARED
            flags = AT_RECURSIVE if deep else 0
            set_attributes(script, ROOT, propagation=self.propagation & ~MS_REC, flags=flags)


class MakeDevices(Inside):
    """Device nodes of our own in the container's /dev, and the links that programs expect there."""

    __slots__ = ("fresh", "links", "nodes")
    settled = True

    def __init__(self, devices: Iterable[Device], links: tuple[tuple[str, str], ...], *, fresh: bool) -> None:
        self.links = links
        self.fresh = fresh  # whether nothing can be there already
        # By directory, so that each is found once.
        self.nodes: dict[bytes, list[tuple[bytes, int, int, int, int]]] = {b"dev": []}
        for device in devices:
            *parents, name = components(os.fsencode(device.path))
            mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
            number = 0 if device.type == "p" else os.makedev(device.major, device.minor)
            node = (name, _KINDS[device.type] | mode, number, device.uid or 0, device.gid or 0)
            self.nodes.setdefault(b"/".join(parents), []).append(node)

    def describe(self) -> str:
        made = " ".join(
            f"/{os.fsdecode(directory)}/{os.fsdecode(node[0])}"
            for directory, nodes in self.nodes.items()
            for node in nodes
        )
        linked = " ".join(name for _, name in self.links)
        return f"mknod {made}; in /dev, link {linked}"

    def write(self, script: Script) -> None:
        for directory, nodes in self.nodes.items():
            make_directory(script, directory, TARGET)
            for node in nodes:
                _make_node(script, *node, fresh=self.fresh and directory == b"dev")
            for target, name in self.links if directory == b"dev" else ():
                # What is there already is the image's own, or devpts' ptmx through a bind mount.
                script.call(
                    "symlinkat", os.fsencode(target), TARGET, os.fsencode(name), on={EEXIST: NEXT}, about=f": {name!r}"
                )
            script.call("close", TARGET)


_KINDS = {"c": S_IFCHR, "u": S_IFCHR, "b": 0o060000, "p": 0o010000}


def _make_node(script: Script, name: bytes, mode: int, number: int, uid: int, gid: int, *, fresh: bool) -> None:
    if fresh:
        script.call("mknodat", TARGET, name, mode, number, about=name)
    else:
        exists, other, made = Label(), Label(), Label()
        script.call("mknodat", TARGET, name, mode, number, on={EEXIST: exists}, about=name)
        script.jump(made)
        script.mark(exists)
        look(script, TARGET, name)
        expect_device(script, mode & S_IFMT, number, other)
        script.jump(made)
        script.mark(other)
        script.fail(EEXIST, f"=is there already and is no such device{about(name)}")
        script.mark(made)
    if uid or gid:
        script.call("fchownat", TARGET, name, uid, gid, AT_SYMLINK_NOFOLLOW, about=name)


class BindDevice(Inside):
    """The host's device, where a user namespace forbids to make one."""

    __slots__ = ("path", "tree")
    settled = True

    def __init__(self, path: bytes, tree: int) -> None:
        self.path, self.tree = path, tree

    def describe(self) -> str:
        return f"mount --bind {os.fsdecode(self.path)} (the host's)"

    def write(self, script: Script) -> None:
        make_target(script, self.path, TARGET, directory=False)
        attach(script, script.descriptor(self.tree), TARGET, self.path)
        script.call("close", TARGET)


class Spot:
    """A path inside: ``below`` a mount whose descriptor is ``held``, or where there is none as it is named."""

    __slots__ = ("below", "held", "path")

    def __init__(self, path: str, held: Variable | int | None, below: bytes) -> None:
        self.path, self.held, self.below = path, held, below


class Mask(Inside):
    """Hide paths: a file behind the container's null device, a directory behind an empty one."""

    __slots__ = ("spots",)
    settled = True

    def __init__(self, spots: list[Spot]) -> None:
        self.spots = spots

    def describe(self) -> str:
        return "mask " + " ".join(spot.path for spot in self.spots)

    def write(self, script: Script) -> None:
        script.give(NULL, -1)
        script.give(EMPTY, -1)
        _with_each(script, self.spots, self._hide)

    def _hide(self, script: Script) -> None:
        """What TARGET names."""
        file, copied, looked, hidden = Label(), Label(), Label(), Label()
        look(script, TARGET, b"")
        script.compare(MODE, S_IFMT, S_IFDIR, file)
        script.compare(EMPTY, -1, -1, copied)
        empty_directory(script)
        attach(script, EMPTY, TARGET)
        script.jump(hidden)
        script.mark(copied)
        # Attached by now, therefore in this namespace, therefore it can be copied.
        _attach_copy(script, EMPTY)
        script.jump(hidden)
        script.mark(file)
        script.compare(NULL, -1, -1, looked)
        open_device(script, b"dev/null", os.makedev(1, 3), NULL, "is not the null device")
        script.mark(looked)
        _attach_copy(script, NULL)
        script.mark(hidden)


def _attach_copy(script: Script, source: Variable) -> None:
    script.call("open_tree", source, b"", COPY | AT_EMPTY_PATH, into=TREE)
    attach(script, TREE, TARGET)
    script.call("close", TREE)


def open_device(script: Script, path: bytes, number: int, into: Variable, complaint: str) -> None:
    """A character device inside, certainly: a container that can race could have put anything at its place."""
    open_in_root(script, path, os.O_PATH | os.O_NOFOLLOW, into)
    expect(script, into, path, number, complaint)


def expect(script: Script, opened: Variable, path: bytes, number: int, complaint: str) -> None:
    """Fail where a descriptor is not of this character device."""
    other, certain = Label(), Label()
    look(script, opened, b"")
    expect_device(script, S_IFCHR, number, other)
    script.jump(certain)
    script.mark(other)
    script.fail(EINVAL, f"={complaint}: '/{os.fsdecode(path)}'")
    script.mark(certain)


def empty_directory(script: Script) -> None:
    """A detached, empty, read-only tmpfs in EMPTY."""
    script.call("fsopen", b"tmpfs", FSOPEN_CLOEXEC, into=OPENED)
    script.call("fsconfig", OPENED, FSCONFIG_CMD_CREATE, 0, 0, 0)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    script.call("fsmount", OPENED, FSMOUNT_CLOEXEC, attributes, into=EMPTY)
    script.call("close", OPENED)


class ReadOnly(Inside):
    """Make paths read-only, with all that is mounted below them."""

    __slots__ = ("spots",)
    settled = True

    def __init__(self, spots: list[Spot]) -> None:
        self.spots = spots

    def describe(self) -> str:
        return "read-only " + " ".join(spot.path for spot in self.spots)

    def write(self, script: Script) -> None:
        _with_each(script, self.spots, self._protect)

    def _protect(self, script: Script) -> None:
        """What TARGET names."""
        script.call("open_tree", TARGET, b"", COPY | AT_EMPTY_PATH | AT_RECURSIVE, into=TREE)
        set_attributes(script, TREE, set=MOUNT_ATTR_RDONLY, flags=AT_RECURSIVE)
        attach(script, TREE, TARGET)
        script.call("close", TREE)


def _with_each(script: Script, spots: list[Spot], act: Callable[[Script], None]) -> None:
    """Open each path that is there as TARGET, and do the same with all of them: rows that are shared."""
    shared, done = Label(), Label()
    for spot in spots:
        absent = Label()
        on: dict[int, Label | int] = {ENOENT: absent, ENOTDIR: absent}
        if spot.held is None:
            open_in_root(script, os.fsencode(spot.path), os.O_PATH, TARGET, on)
        else:
            held = script.descriptor(spot.held) if isinstance(spot.held, int) else spot.held
            open_in_root(script, spot.below, os.O_PATH, TARGET, on, root=held)
        script.jump(shared, BACK)
        script.mark(absent)
    script.jump(done)
    script.mark(shared)
    act(script)
    script.call("close", TARGET)
    script.leap(BACK)
    script.mark(done)
