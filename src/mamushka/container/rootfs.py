"""The container's root: how it is entered, and how every path in it is found without being fooled.

The tree below the root was filled by a stranger. So a path in it is only ever resolved by openat2 with
RESOLVE_IN_ROOT against the root's descriptor, what it named is kept as a descriptor, and it is never opened by
path a second time.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL

from mamushka.container.operation import Inside
from mamushka.linux.fd import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, open_in_root
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
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    attach,
    fsconfig,
    fsmount,
    fsopen,
    mount_attr,
    mount_setattr,
    open_tree,
    pivot_root,
    set_attributes,
    umount2,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.container.operation import Site
    from mamushka.spec.runtime import Device

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
COPY = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
# A path of more components than this is no mistake of a person: PATH_MAX is 4096.
_COMPONENTS_MAX = 256


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


def make_directory(root: int, path: bytes, mode: int = 0o755) -> int:
    """The directory at ``path`` inside, made with its parents where missing; an O_PATH descriptor."""
    try:
        return open_in_root(root, path, _DIRECTORY)
    except FileNotFoundError:
        pass
    current = open_in_root(root, b".", _DIRECTORY)
    so_far = b""
    for name in components(path):
        try:
            os.mkdir(name, mode, dir_fd=current)
        except FileExistsError:
            pass
        os.close(current)
        so_far += b"/" + name
        current = open_in_root(root, so_far, _DIRECTORY)
    return current


def make_target(root: int, path: bytes, *, directory: bool) -> int:
    """Where something can be mounted: what is at ``path``, or a new empty directory or file; O_PATH."""
    if directory:
        return make_directory(root, path)
    try:
        return open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        pass
    *parents, name = components(path) or [b"."]
    parent = make_directory(root, b"/".join(parents))
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


class EnterRoot(Inside):
    """Cut the ties to the host's mounts and put the root filesystem, a detached tree, into this namespace."""

    __slots__ = ("readable", "site", "target", "tree")

    def __init__(self, site: Site, tree: int, target: bytes, readable: str) -> None:
        self.site, self.tree, self.target, self.readable = site, tree, target, readable

    def describe(self) -> str:
        return f"mount the root filesystem {self.readable}"

    def execute(self) -> None:
        # What follows must not appear on the host; what the host unmounts may vanish here.
        mount_setattr(AT_FDCWD, b"/", AT_RECURSIVE, mount_attr(propagation=MS_SLAVE), MOUNT_ATTR_SIZE)
        attach(self.tree, self.target)
        self.site.root = self.tree


class PivotRoot(Inside):
    """Make the root filesystem "/" and let go of the host's."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def describe(self) -> str:
        return "pivot_root, and detach the host's root"

    def execute(self) -> None:
        os.fchdir(self.site.root)
        # The old root comes to lie on top of the new one at ".", so no directory inside is needed for it.
        pivot_root(b".", b".")
        umount2(b".", MNT_DETACH)
        os.chdir("/")


class MoveRoot(Inside):
    """Where pivot_root is impossible (an initramfs): the root lies over "/" already, so chroot. --no-pivot."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def describe(self) -> str:
        return "chroot into the root filesystem"

    def execute(self) -> None:
        os.fchdir(self.site.root)
        os.chroot(".")
        os.chdir("/")


class SetRoot(Inside):
    """The root mount's own properties, once nothing inside must be made any more."""

    __slots__ = ("propagation", "readonly", "site")

    def __init__(self, site: Site, *, readonly: bool, propagation: int) -> None:
        self.site, self.readonly, self.propagation = site, readonly, propagation

    def describe(self) -> str:
        return "make the root filesystem read-only" if self.readonly else "set the root filesystem's propagation"

    def execute(self) -> None:
        if self.readonly:
            set_attributes(self.site.root, set=MOUNT_ATTR_RDONLY)
        if self.propagation:
            flags = AT_RECURSIVE if self.propagation & MS_REC else 0
            set_attributes(self.site.root, propagation=self.propagation & ~MS_REC, flags=flags)


class MakeDevices(Inside):
    """Device nodes of our own in the container's /dev, and the links that programs expect there."""

    __slots__ = ("links", "nodes", "site")

    def __init__(self, site: Site, devices: Iterable[Device], links: tuple[tuple[str, str], ...]) -> None:
        self.site, self.links = site, links
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

    def execute(self) -> None:
        for directory, nodes in self.nodes.items():
            parent = make_directory(self.site.root, directory)
            for node in nodes:
                _make_node(parent, *node)
            if directory == b"dev":
                self._link(parent)
            os.close(parent)

    def _link(self, dev: int) -> None:
        for target, name in self.links:
            try:
                os.symlink(target, name, dir_fd=dev)
            except FileExistsError:
                pass  # the image's own, or devpts' ptmx through a bind mount


_KINDS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def _make_node(parent: int, name: bytes, mode: int, number: int, uid: int, gid: int) -> None:
    try:
        os.mknod(name, mode, number, dir_fd=parent)
    except FileExistsError:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if found.st_mode & 0o170000 != mode & 0o170000 or found.st_rdev != number:
            raise OSError(EEXIST, "is there already and is no such device", name) from None
    if uid or gid:
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


class BindDevice(Inside):
    """The host's device, where a user namespace forbids to make one."""

    __slots__ = ("path", "site", "tree")

    def __init__(self, site: Site, path: bytes, tree: int) -> None:
        self.site, self.path, self.tree = site, path, tree

    def describe(self) -> str:
        return f"mount --bind {os.fsdecode(self.path)} (the host's)"

    def execute(self) -> None:
        target = make_target(self.site.root, self.path, directory=False)
        attach(self.tree, target)
        os.close(target)


class Mask(Inside):
    """Hide paths: a file behind the container's null device, a directory behind an empty one."""

    __slots__ = ("paths", "site")

    def __init__(self, site: Site, paths: tuple[str, ...]) -> None:
        self.site = site
        self.paths = tuple(os.fsencode(path) for path in paths)

    def describe(self) -> str:
        return "mask " + " ".join(map(os.fsdecode, self.paths))

    def execute(self) -> None:
        null = -1
        for path in self.paths:
            try:
                target = open_in_root(self.site.root, path, os.O_PATH)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if os.fstat(target).st_mode & 0o170000 == 0o040000:
                self._hide_directory(target)
            else:
                null = null if null >= 0 else open_null(self.site.root)
                tree = open_tree(null, b"", COPY | AT_EMPTY_PATH)
                attach(tree, target)
                os.close(tree)
            os.close(target)

    def _hide_directory(self, target: int) -> None:
        if self.site.empty < 0:
            self.site.empty = empty_directory()
            attach(self.site.empty, target)
            return
        # Attached by now, therefore in this namespace, therefore it can be copied.
        tree = open_tree(self.site.empty, b"", COPY | AT_EMPTY_PATH)
        attach(tree, target)
        os.close(tree)


def open_null(root: int) -> int:
    """The container's /dev/null, certainly: a container that can race could have put anything there."""
    null = open_in_root(root, b"dev/null", os.O_PATH | os.O_NOFOLLOW)
    found = os.fstat(null)
    if found.st_mode & 0o170000 != 0o020000 or found.st_rdev != os.makedev(1, 3):
        raise OSError(EINVAL, "is not the null device", "/dev/null")
    return null


def empty_directory() -> int:
    """A detached, empty, read-only tmpfs."""
    filesystem = fsopen(b"tmpfs", FSOPEN_CLOEXEC)
    fsconfig(filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    tree = fsmount(filesystem, FSMOUNT_CLOEXEC, attributes)
    os.close(filesystem)
    return tree


class ReadOnly(Inside):
    """Make paths read-only, with all that is mounted below them."""

    __slots__ = ("paths", "site")

    def __init__(self, site: Site, paths: tuple[str, ...]) -> None:
        self.site = site
        self.paths = tuple(os.fsencode(path) for path in paths)

    def describe(self) -> str:
        return "read-only " + " ".join(map(os.fsdecode, self.paths))

    def execute(self) -> None:
        for path in self.paths:
            try:
                target = open_in_root(self.site.root, path, os.O_PATH)
            except (FileNotFoundError, NotADirectoryError):
                continue
            tree = open_tree(target, b"", COPY | AT_EMPTY_PATH | AT_RECURSIVE)
            set_attributes(tree, set=MOUNT_ATTR_RDONLY, flags=AT_RECURSIVE)
            attach(tree, target)
            os.close(tree)
            os.close(target)
