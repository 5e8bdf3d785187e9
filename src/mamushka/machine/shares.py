"""What of the host's files a guest sees: one tree, put together for one machine, in a mount namespace of its own.

    root         the root filesystem, where it is a directory or a detached mount
    mounts/N     what the bundle binds, in its order: directories, files, sockets as names

A machine that has its root as disks is told the small files of its bundle's own, /etc/hosts and its like, word by word;
where nothing else is bound there is no tree, and nobody who serves it.

The tree lies over the machine's record, as its monitor alone sees it, and is gone with it. A guest mounts it once, and
binds from it what its program is to see where. So paths that a stranger's image has prepared are only ever resolved by
the guest's kernel.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import NotFound
from mamushka.linux import mount as kernel
from mamushka.linux import procfs, tmpfs
from mamushka.linux.fd import AT_RECURSIVE
from mamushka.linux.process import CLONE_NEWNS, unshare
from mamushka.spec.runtime import Mount
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.runtime import Bundle
    from mamushka.spec.runtime import Config

TAG = "mamushka"
# Where a guest mounts it.
INSIDE = "/run/host"
# Names alone: no content lies on the file system that holds the tree together.
_SIZE = b"1m"
_CONTENT_MAX = 1 << 16  # of a configuration file
_TMPFS_MAGIC = 0x01021994  # linux/magic.h
# Of a file that is told word by word: a page of names is 4 KiB, and all of them travel in one frame of 1 MiB.
_COPIED_MAX = 64 << 10


def binds(item: Mount) -> bool:
    """Whether a mount shows something that exists on the host."""
    return item.type == "bind" or "bind" in item.options or "rbind" in item.options


def local(config: Config) -> Config:
    """The bundle with memory of the guest's where a caller binds a tmpfs of the host's at /dev/shm.

    What programs share there they map into their memory, which only one kernel can keep the same for all of them.
    """
    return replace(config, mounts=tuple(_local(item) if binds(item) else item for item in config.mounts))


def content(bundle: Bundle, destination: str) -> str:
    """What a small file of the host's says that is bound there; empty where there is none."""
    for item in bundle.config.mounts:
        if item.destination == destination and binds(item):
            try:
                with open(os.path.join(bundle.path, item.source), "rb") as file:
                    return file.read(_CONTENT_MAX).decode(errors="replace")
            except OSError:
                break  # told when it is to be shared
    return ""


def _local(item: Mount) -> Mount:
    if item.destination.rstrip("/") != "/dev/shm":
        return item
    try:
        fd = os.open(item.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return item  # told when it is to be shared
    try:
        found = procfs.statfs()
        procfs.fstatfs(fd, found)
    finally:
        os.close(fd)
    if found.f_type != _TMPFS_MAGIC:
        return item
    size = found.f_blocks * found.f_bsize
    # 1777: everybody's, as everywhere. Without a limit (0) the kernel's own, half of the memory.
    words = ("nosuid", "nodev", "noexec", "mode=1777", *((f"size={size}",) if size else ()))
    return Mount(item.destination, "tmpfs", "shm", words)


def step() -> bytes:
    """By which a guest mounts it."""
    from mamushka.machine.agent.settings import mount

    return mount(INSIDE, "virtiofs", TAG)


def copied(bundle: Bundle) -> Mapping[str, str]:
    """What of a bundle's is told instead of shared: the host's path by destination.

    It is made for one start and never changed later, so a copy shows the same.
    """
    found = {}
    for item in bundle.config.mounts if bundle.disks.images else ():
        if binds(item) and item.source.startswith(f"{bundle.path}/"):
            try:
                seen = os.stat(item.source, follow_symlinks=False)
            except OSError:
                continue  # told when it is bound
            if stat.S_ISREG(seen.st_mode) and seen.st_size <= _COPIED_MAX:
                found[item.destination] = item.source
    return found


def shared(bundle: Bundle) -> bool:
    """Whether a machine needs anything of the host's files while it runs."""
    told = copied(bundle)
    return not bundle.disks.images or any(binds(item) and item.destination not in told for item in bundle.config.mounts)


def tree(place: str, bundle: Bundle, root: int) -> tuple[int, str, Mapping[str, str]]:
    """(descriptor of the tree, the root's path in the guest, the paths of what is bound by destination).

    This process leaves the host's mount namespace. ``root`` is a detached mount, consumed; without one (-1) the
    bundle's root is a path, or it has disks. NotFound where a source is not there.
    """
    told = copied(bundle)
    unshare(CLONE_NEWNS)
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_SLAVE, None)
    _lay(place)
    if not bundle.disks.images:
        os.mkdir(f"{place}/root", 0o755)
        _show_root(f"{place}/root", bundle, root)
    os.mkdir(f"{place}/mounts", 0o755)
    found: dict[str, str] = {}
    bound = (item for item in bundle.config.mounts if binds(item) and item.destination not in told)
    for number, item in enumerate(bound):
        _show(os.path.join(bundle.path, item.source), f"{place}/mounts/{number}", item)
        found[item.destination] = f"{INSIDE}/mounts/{number}"
    return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), f"{INSIDE}/root", found


def _lay(place: str) -> None:
    options = ((b"size", _SIZE), (b"mode", b"755"))
    made = tmpfs.detached(options, kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOSUID)
    try:
        kernel.attach(made, os.fsencode(place))
    finally:
        os.close(made)


def _show_root(target: str, bundle: Bundle, root: int) -> None:
    if root >= 0:
        kernel.attach(root, os.fsencode(target))
        return
    given = bundle.config.root
    source = os.path.join(bundle.path, given.path if given is not None else "rootfs")
    if not os.path.isdir(source):
        raise NotFound(f"the root filesystem {source} is not a directory")
    kernel.mount(os.fsencode(source), os.fsencode(target), None, kernel.MS_BIND | kernel.MS_REC, None)


def _show(source: str, target: str, item: Mount) -> None:
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        raise NotFound(f"cannot bind {item.source} at {item.destination}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    recursive = kernel.MS_REC if "rbind" in item.options else 0
    kernel.mount(os.fsencode(source), os.fsencode(target), None, kernel.MS_BIND | recursive, None)
    if "ro" in item.options or "rro" in item.options:
        _forbid_writing(target, recursive="rro" in item.options)


def _forbid_writing(target: str, *, recursive: bool) -> None:
    """On this side too: the guest's own read-only mount is the guest's word."""
    shown = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.set_attributes(shown, set=kernel.MOUNT_ATTR_RDONLY, flags=AT_RECURSIVE if recursive else 0)
    finally:
        os.close(shown)
