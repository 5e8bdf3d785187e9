"""The bundle's mounts.

Whatever comes from the host is a detached tree before the container's process exists: its source is resolved with
the caller's rights and its errors are the caller's. Filesystems of the container's own (proc, sysfs, devpts,
mqueue, tmpfs) are made inside, because the namespaces of the maker decide what they show.
"""

from __future__ import annotations

import os

from mamushka.container import options as words
from mamushka.container import rootfs
from mamushka.container.operation import CURRENT, TARGET, TREE, Inside
from mamushka.container.rootfs import COPY, make_directory, make_target
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.linux.fd import AT_FDCWD, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW
from mamushka.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_PRIVATE,
    MS_REC,
    open_tree,
    set_attributes,
)
from mamushka.linux.script import REASONING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.container.options import Options
    from mamushka.linux.script import Script, Variable
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
    if "remount" in asked.words and (asked.parameters or asked.flags or asked.propagation):
        raise Unsupported(
            f"the remount at {mount.destination} asks for more than a mount's own attributes",
            hint="give the filesystem's options where it is mounted",
        )
    if not mount.type and not asked.bind and "remount" not in asked.words:
        raise Invalid(f"the mount at {mount.destination} has neither a type nor the option bind")
    return asked


class AttachTree(Inside):
    """Something of the host's, at a place inside."""

    __slots__ = ("destination", "directory", "recursive", "source", "tree")
    settled = True

    def __init__(self, tree: int, destination: str, source: str, *, recursive: bool) -> None:
        self.tree, self.source, self.recursive = tree, source, recursive
        self.destination = os.fsencode(destination)
        self.directory = os.fstat(tree).st_mode & 0o170000 == 0o040000

    def hangs_on(self) -> object:
        return self.directory

    def describe(self) -> str:
        return f"mount --{'r' if self.recursive else ''}bind {self.source} {os.fsdecode(self.destination)}"

    def write(self, script: Script) -> None:
        make_target(script, self.destination, TARGET, directory=self.directory)
        rootfs.attach(script, script.descriptor(self.tree), TARGET, self.destination)
        script.call("close", TARGET)


class Remount(Inside):
    """Other attributes for what is mounted already."""

    __slots__ = ("asked", "destination")
    settled = True

    def __init__(self, destination: str, asked: Options) -> None:
        self.destination, self.asked = os.fsencode(destination), asked

    def describe(self) -> str:
        return f"mount -o remount,… {os.fsdecode(self.destination)}"

    def write(self, script: Script) -> None:
        rootfs.open_in_root(script, self.destination, os.O_PATH, TARGET)
        set_options(script, TARGET, self.asked)
        script.call("close", TARGET)


class MountFilesystem(Inside):
    """A filesystem of the container's own; ``keep`` is where its descriptor stays for later operations."""

    __slots__ = ("asked", "destination", "keep", "kind", "parameters", "source")
    settled = True

    def __init__(self, mount: Mount, asked: Options, label: str = "") -> None:
        self.asked = asked
        self.kind = mount.type.encode()
        self.source = os.fsencode(mount.source)
        self.destination = os.fsencode(mount.destination)
        self.parameters = parameters(mount, asked, label)
        self.keep: Variable | None = None

    @property
    def long(self) -> bool:
        """Whether a parameter is too long for fsconfig: then there is no descriptor to keep."""
        return any(item and len(item) > _FSCONFIG_VALUE_MAX for _, item in self.parameters)

    def describe(self) -> str:
        return f"mount -t {self.kind.decode()} {described(self.parameters)}{os.fsdecode(self.destination)}"

    def write(self, script: Script) -> None:
        make_directory(script, self.destination, TARGET)
        if self.long:
            self._mount_by_path(script)
            return
        tree = self.keep or TREE
        configure(script, self.kind, self.source, self.parameters)
        script.call("fsmount", REASONING, FSMOUNT_CLOEXEC, self.asked.set, into=tree, reason=True)
        script.call("close", REASONING)
        if self.asked.recursive_set or self.asked.propagation:
            set_options(script, tree, self.asked)
        rootfs.attach(script, tree, TARGET, self.destination)
        script.call("close", TARGET)
        if self.keep is None:
            script.call("close", TREE)

    def _mount_by_path(self, script: Script) -> None:
        given = b",".join(key + (b"=" + item if item is not None else b"") for key, item in self.parameters)
        script.call("fchdir", TARGET)
        script.call("mount", self.source, b".", self.kind, 0, given)
        script.call("close", TARGET)
        make_directory(script, self.destination, TREE)
        set_options(script, TREE, self.asked)
        script.call("close", TREE)


def parameters(mount: Mount, asked: Options, label: str) -> list[tuple[bytes, bytes | None]]:
    """What the filesystem itself is told: names, with or without a value."""
    pairs: list[tuple[bytes, bytes | None]] = [(word.encode(), None) for word in asked.flags]
    for word in asked.parameters:
        key, equals, content = word.partition("=")
        pairs.append((key.encode(), os.fsencode(content) if equals else None))
    if label and mount.type not in _UNLABELLED:
        pairs.append((b"context", os.fsencode(label)))
    return pairs


def described(pairs: list[tuple[bytes, bytes | None]]) -> str:
    """As mount(8) takes them."""
    given = ",".join(key.decode() + (f"={os.fsdecode(item)}" if item else "") for key, item in pairs)
    return f"-o {given} " if given else ""


def configure(script: Script, kind: bytes, source: bytes, pairs: list[tuple[bytes, bytes | None]]) -> None:
    """A superblock behind the descriptor REASONING, which also says why one is refused."""
    script.call("fsopen", kind, FSOPEN_CLOEXEC, into=REASONING)
    if source:
        script.call("fsconfig", REASONING, FSCONFIG_SET_STRING, b"source", source, 0, reason=True)
    for key, item in pairs:
        command, content = (FSCONFIG_SET_FLAG, 0) if item is None else (FSCONFIG_SET_STRING, item)
        script.call("fsconfig", REASONING, command, key, content, 0, reason=True)
    script.call("fsconfig", REASONING, FSCONFIG_CMD_CREATE, 0, 0, 0, reason=True)


def set_options(script: Script, tree: Variable, asked: Options, *, flags: int = 0) -> None:
    """The properties of a mount that the options ask for."""
    if asked.set or asked.clear:
        rootfs.set_attributes(script, tree, set=asked.set, clear=asked.clear, flags=flags)
    if asked.recursive_set or asked.recursive_clear:
        rootfs.set_attributes(script, tree, set=asked.recursive_set, clear=asked.recursive_clear, flags=AT_RECURSIVE)
    for propagation in asked.propagation:
        deep = AT_RECURSIVE if propagation & MS_REC else 0
        rootfs.set_attributes(script, tree, propagation=propagation & ~MS_REC, flags=deep)


class MountCgroups(Inside):
    """The container's view of its own cgroups: one tree, or on older layouts a directory for each hierarchy."""

    __slots__ = ("asked", "destination", "links", "paths")
    settled = True

    def __init__(self, destination: str, asked: Options, paths: tuple[tuple[str, str], ...]) -> None:
        self.asked = asked
        self.destination = os.fsencode(destination)
        self.paths = tuple((name.encode(), os.fsencode(path)) for name, path in paths)
        # cpu,cpuacct in one hierarchy are also found as cpu and as cpuacct.
        self.links = tuple((part, name) for name, _ in self.paths if b"," in name for part in name.split(b","))

    def names(self) -> Sequence[bytes]:
        return [path for _, path in self.paths]

    def hangs_on(self) -> object:
        return [name for name, _ in self.paths]

    def describe(self) -> str:
        return f"mount the container's {len(self.paths)} cgroups at {os.fsdecode(self.destination)}"

    def write(self, script: Script) -> None:
        make_directory(script, self.destination, TARGET)
        if len(self.paths) == 1 and not self.paths[0][0]:
            script.call("open_tree", AT_FDCWD, script.name(self.paths[0][1]), COPY, into=TREE)
            set_options(script, TREE, self.asked)
            rootfs.attach(script, TREE, TARGET, self.destination)
        else:
            self._bind_each(script)
        script.call("close", TREE)
        script.call("close", TARGET)

    def _bind_each(self, script: Script) -> None:
        configure(script, b"tmpfs", b"", [(b"mode", b"755")])
        script.call("fsmount", REASONING, FSMOUNT_CLOEXEC, 0, into=TREE)
        script.call("close", REASONING)
        rootfs.attach(script, TREE, TARGET, self.destination)
        for name, path in self.paths:
            script.call("mkdirat", TREE, name, 0o755, about=name)
            script.call("open_tree", AT_FDCWD, script.name(path), COPY, into=CURRENT, about=name)
            script.call("move_mount", CURRENT, b"", TREE, name, MOVE_MOUNT_F_EMPTY_PATH, about=name)
            script.call("close", CURRENT)
        for link, name in self.links:
            script.call("symlinkat", name, TREE, link, about=link)
        set_options(script, TREE, self.asked, flags=AT_RECURSIVE)
