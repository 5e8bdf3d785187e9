"""The bundle's mounts.

Whatever comes from the host is a detached tree before the container's process exists: its source is resolved with
the caller's rights and its errors are the caller's. Filesystems of the container's own (proc, sysfs, devpts,
mqueue, tmpfs) are made inside, because the namespaces of the maker decide what they show.
"""

from __future__ import annotations

import os
from errno import ENODATA

from mamushka.container import options as words
from mamushka.container.operation import Inside
from mamushka.container.rootfs import COPY, make_directory, make_target
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.linux.fd import AT_FDCWD, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW, proc_path
from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MS_PRIVATE,
    MS_REC,
    attach,
    attach_at,
    fsconfig,
    fsmount,
    fsopen,
    mount,
    open_tree,
    set_attributes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.container.operation import Site
    from mamushka.container.options import Options
    from mamushka.spec.runtime import Mount

# strndup_user in fsconfig(2) takes no longer values; mount(2) takes a page.
_FSCONFIG_VALUE_MAX = 255
# What the kernel labels itself, whatever linux.mountLabel says.
_UNLABELLED = ("proc", "sysfs", "mqueue")


def host_tree(source: str, asked: Options, destination: str) -> int:
    """A detached copy of what lies at ``source`` on the host, with the options' properties; the caller closes it."""
    flags = COPY | (AT_RECURSIVE if asked.recursive else 0)
    flags |= AT_SYMLINK_NOFOLLOW if "src-nofollow" in asked.words else 0
    try:
        tree = open_tree(AT_FDCWD, os.fsencode(source), flags)
    except FileNotFoundError as error:
        raise NotFound(
            f"cannot mount {source} at {destination}: no such file or directory", hint="make the source first"
        ) from error
    try:
        _set(tree, asked)
        if not asked.propagation:
            set_attributes(tree, propagation=MS_PRIVATE, flags=AT_RECURSIVE)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _set(tree: int, asked: Options, *, flags: int = 0) -> None:
    if asked.set or asked.clear:
        set_attributes(tree, set=asked.set, clear=asked.clear, flags=flags)
    if asked.recursive_set or asked.recursive_clear:
        set_attributes(tree, set=asked.recursive_set, clear=asked.recursive_clear, flags=AT_RECURSIVE)
    for propagation in asked.propagation:
        deep = AT_RECURSIVE if propagation & MS_REC else 0
        set_attributes(tree, propagation=propagation & ~MS_REC, flags=deep)


def parse(mount: Mount) -> Options:
    """The options of one mount of the bundle; Invalid where they contradict its type."""
    asked = words.parse(mount.options, mount.destination)
    if not mount.destination:
        raise Invalid("a mount has an empty destination")
    if "remount" in asked.words:
        raise Unsupported(f"the mount at {mount.destination} asks for a remount", hint="give its options at once")
    if not mount.type and not asked.bind:
        raise Invalid(f"the mount at {mount.destination} has neither a type nor the option bind")
    return asked


class AttachTree(Inside):
    """Something of the host's, at a place inside."""

    __slots__ = ("destination", "directory", "recursive", "site", "source", "tree")

    def __init__(self, site: Site, tree: int, destination: str, source: str, *, recursive: bool) -> None:
        self.site, self.tree, self.source, self.recursive = site, tree, source, recursive
        self.destination = os.fsencode(destination)
        self.directory = os.fstat(tree).st_mode & 0o170000 == 0o040000

    def describe(self) -> str:
        return f"mount --{'r' if self.recursive else ''}bind {self.source} {os.fsdecode(self.destination)}"

    def execute(self) -> None:
        target = make_target(self.site.root, self.destination, directory=self.directory)
        attach(self.tree, target)
        os.close(target)


class MountFilesystem(Inside):
    """A filesystem of the container's own."""

    __slots__ = ("asked", "copy_up", "destination", "kind", "parameters", "site", "source")

    def __init__(self, site: Site, mount: Mount, asked: Options, label: str = "") -> None:
        self.site, self.asked = site, asked
        self.kind = mount.type.encode()
        self.source = os.fsencode(mount.source)
        self.destination = os.fsencode(mount.destination)
        pairs: list[tuple[bytes, bytes | None]] = [(word.encode(), None) for word in asked.flags]
        for word in asked.parameters:
            key, equals, content = word.partition("=")
            pairs.append((key.encode(), os.fsencode(content) if equals else None))
        if label and mount.type not in _UNLABELLED:
            pairs.append((b"context", os.fsencode(label)))
        self.parameters = pairs
        self.copy_up: Callable[[int, int], None] | None = None
        if "tmpcopyup" in asked.words and mount.type == "tmpfs":
            from mamushka.container.copyup import copy_tree

            self.copy_up = copy_tree

    def describe(self) -> str:
        given = ",".join(key.decode() + (f"={os.fsdecode(item)}" if item else "") for key, item in self.parameters)
        text = f"mount -t {self.kind.decode()}{' -o ' if given else ''}{given} {os.fsdecode(self.destination)}"
        return text + (" (with a copy of what is there)" if self.copy_up else "")

    def execute(self) -> None:
        target = make_directory(self.site.root, self.destination)
        if any(item and len(item) > _FSCONFIG_VALUE_MAX for _, item in self.parameters):
            self._mount_by_path(target)
            return
        tree = self._make()
        if self.copy_up:
            self.copy_up(target, tree)
            set_attributes(tree, set=self.asked.set)
        if self.asked.recursive_set or self.asked.propagation:
            _set(tree, self.asked)
        attach(tree, target)
        os.close(target)
        self._keep(tree)

    def _make(self) -> int:
        filesystem = fsopen(self.kind, FSOPEN_CLOEXEC)
        try:
            if self.source:
                fsconfig(filesystem, FSCONFIG_SET_STRING, b"source", self.source, 0)
            for key, item in self.parameters:
                command = FSCONFIG_SET_FLAG if item is None else FSCONFIG_SET_STRING
                fsconfig(filesystem, command, key, item, 0)
            fsconfig(filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
        except OSError as error:
            raise _with_reason(error, filesystem) from None
        # What is to be copied into it first cannot be copied into a read-only mount.
        tree = fsmount(filesystem, FSMOUNT_CLOEXEC, 0 if self.copy_up else self.asked.set)
        os.close(filesystem)
        return tree

    def _mount_by_path(self, target: int) -> None:
        given = b",".join(key + (b"=" + item if item is not None else b"") for key, item in self.parameters)
        mount(self.source, proc_path(target), self.kind, 0, given)
        os.close(target)
        tree = make_directory(self.site.root, self.destination)
        _set(tree, self.asked)
        os.close(tree)

    def _keep(self, tree: int) -> None:
        if self.kind == b"proc" and self.site.proc < 0:
            self.site.proc = tree
        elif self.kind == b"devpts" and self.site.devpts < 0:
            self.site.devpts = tree
        else:
            os.close(tree)


def _with_reason(error: OSError, filesystem: int) -> OSError:
    """The kernel's own sentence about what it refused, which it keeps for the descriptor of fsopen."""
    try:
        reason = os.read(filesystem, 512).decode(errors="replace").strip()
    except OSError as nothing:
        if nothing.errno != ENODATA:
            raise
        return error
    return OSError(error.errno, f"{error.strerror}: {reason[2:]}")  # "e " marks an error


class MountCgroups(Inside):
    """The container's view of its own cgroups: one tree, or on older layouts a directory for each hierarchy."""

    __slots__ = ("asked", "destination", "links", "paths", "site")

    def __init__(self, site: Site, destination: str, asked: Options, paths: tuple[tuple[str, str], ...]) -> None:
        self.site, self.asked = site, asked
        self.destination = os.fsencode(destination)
        self.paths = tuple((name.encode(), os.fsencode(path)) for name, path in paths)
        # cpu,cpuacct in one hierarchy are also found as cpu and as cpuacct.
        self.links = tuple((part, name) for name, _ in self.paths if b"," in name for part in name.split(b","))

    def describe(self) -> str:
        return f"mount the container's {len(self.paths)} cgroups at {os.fsdecode(self.destination)}"

    def execute(self) -> None:
        target = make_directory(self.site.root, self.destination)
        if len(self.paths) == 1 and not self.paths[0][0]:
            tree = open_tree(AT_FDCWD, self.paths[0][1], COPY)
            _set(tree, self.asked)
            attach(tree, target)
            os.close(tree)
        else:
            self._bind_each(target)
        os.close(target)

    def _bind_each(self, target: int) -> None:
        filesystem = fsopen(b"tmpfs", FSOPEN_CLOEXEC)
        fsconfig(filesystem, FSCONFIG_SET_STRING, b"mode", b"755", 0)
        fsconfig(filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
        tree = fsmount(filesystem, FSMOUNT_CLOEXEC, 0)
        os.close(filesystem)
        attach(tree, target)
        for name, path in self.paths:
            os.mkdir(name, 0o755, dir_fd=tree)
            hierarchy = open_tree(AT_FDCWD, path, COPY)
            attach_at(hierarchy, tree, name)
            os.close(hierarchy)
        for link, name in self.links:
            os.symlink(name, link, dir_fd=tree)
        _set(tree, self.asked, flags=AT_RECURSIVE)
        os.close(tree)
