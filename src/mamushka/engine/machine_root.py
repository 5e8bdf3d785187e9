"""The root of a machine: images of its layers, and a disk for what it writes, as files that the monitor opens.

In the machine the layers are mounted read-only, uppermost first, below an overlay whose top is the disk. Nothing is
mounted on the host. The images are the layer store's: every machine with a layer opens the same file, and that is what
lets them share its pages.

Such a root (``layers``) starts without any program that serves files, goes on from a saved machine without a copy of
its memory, and its pages are shared between machines; what the machine writes is on a disk that only its own kernel
understands, so ``cp`` and ``diff`` ask a machine (machine_files.py). The other root (``shared``) is the overlay that a
container has, served by virtiofsd. Where nobody says which, a machine has its layers if its kernel can mount them and
nothing else of it needs virtiofsd: no volume, no directory of the host's. Which one a workload has is decided by its
first start, and said by the disk being there.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.engine import host, machine_configuration
from mamushka.engine.directory import path_of
from mamushka.engine.rootfs import DISK
from mamushka.errors import Invalid, Unsupported
from mamushka.runtime import Disks, Image
from mamushka.storage.placement import PMEM, Layer, placement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.machine.boot.kernels import Kernel


# Which root a machine has: an annotation of the workload's, or "root" in machines.json for all.
ANNOTATION = "com.mamushka.machine.root"
LAYERS, SHARED = "layers", "shared"
# What the guest's kernel needs for it; by names of machine.boot.kernels.FEATURES.
_NEEDED = ("virtio-pmem", "erofs", "block", "ext4", "overlay")


def disks(engine: Engine, workload: Workload) -> Disks:
    """What the machine's root is made of; nothing where it is the shared one. Makes what is missing.

    Unsupported where it was asked for by the workload and cannot be had, or where neither can.
    """
    if imaged(engine, workload):
        return _disks(engine, workload)
    wanted = _checked(workload.settings.annotations.get(ANNOTATION, ""))
    choice = wanted or _checked(machine_configuration.read().root)
    why = f"{LAYERS} was not chosen" if choice == SHARED else _obstacle(engine, workload)
    if not why and not choice and _bound(workload):
        why = "a volume or a directory of the host's is shared with it anyway"
    if not why:
        try:
            return _disks(engine, workload)
        except (Invalid, Unsupported) as error:
            if wanted:
                raise
            why = str(error)
    elif wanted == LAYERS:
        raise Unsupported(f"this machine cannot have its layers as disks: {why}", hint=f"{ANNOTATION}={SHARED}")
    return _shared(workload, why)


def _shared(workload: Workload, why: str) -> Disks:
    """The shared root, and why. Unsupported where nobody is there to serve it."""
    from mamushka.engine.machines import files_obstacle

    trace.event("machine.root_shared", id=workload.id, why=why)
    lacking = files_obstacle()
    if lacking:
        raise Unsupported(f"{lacking}; this machine needs it because {why}", hint="mamushka doctor says what helps")
    return Disks()


def _bound(workload: Workload) -> bool:
    """Whether something of the host's is to be seen in it, but for what is told to it."""
    settings = workload.settings
    return bool(workload.volumes) or settings.init or any(item.kind != "tmpfs" for item in settings.mounts)


def kernel_obstacle(kernel: Kernel) -> str:
    """Why a machine with this kernel cannot mount its layers itself; empty where it can."""
    from mamushka.storage import top as disk

    lacking = [name for name in _NEEDED if name in kernel.missing]
    if lacking:
        return f"the kernel {kernel.image} lacks {', '.join(lacking)}"
    return "" if disk.program() else "there is no mkfs.ext4 (apt-get install e2fsprogs) to make its disk"


def imaged(engine: Engine, workload: Workload) -> bool:
    """Whether what a workload has written is on a machine's own disk."""
    return workload.runtime == "vm" and os.path.exists(_top(engine, workload))


def refuse(engine: Engine, workload: Workload) -> None:
    """Unsupported where this process cannot see the root of a workload, because it is on a machine's own disk."""
    if imaged(engine, workload):
        raise Unsupported(
            f"what {workload.name} has written is on its machine's own disk, which only the machine can read",
            hint=f"mamushka cp, a volume (-v), or make it with --annotation {ANNOTATION}={SHARED}",
        )


def open_accounts(engine: Engine, workload: Workload) -> int:
    """A directory with nothing but etc/passwd and etc/group as a running machine has them now; yours to close."""
    from mamushka.engine.machines import open_machines
    from mamushka.linux import mount, tmpfs

    told = open_machines(engine.paths.machines).ask(workload.id, "accounts")
    root = tmpfs.detached(((b"size", b"256k"),), mount.MOUNT_ATTR_NOEXEC | mount.MOUNT_ATTR_NOSUID)
    os.mkdir("etc", 0o755, dir_fd=root)
    for name in ("passwd", "group"):
        fd = os.open(f"etc/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root)
        try:
            os.write(fd, str(told[name]).encode())
        finally:
            os.close(fd)
    return root


def _checked(name: str) -> str:
    if name not in ("", LAYERS, SHARED):
        raise Invalid(f"a machine's root is not {name!r}", hint=f"{LAYERS} or {SHARED}")
    return name


def _obstacle(engine: Engine, workload: Workload) -> str:
    """Why a workload that has not run as yet is not given its layers as disks; empty where it can be."""
    from mamushka.engine.rootfs import snapshot
    from mamushka.engine.runtimes import KERNEL
    from mamushka.machine.boot import kernels

    if workload.image_id == host.ID or path_of(workload.image_id) or not workload.layers:
        return "its root is a directory of the host's"
    if os.listdir(snapshot(engine, workload).upper):
        return "something has been written into its shared root"
    kernel = kernels.choose(workload.settings.annotations.get(KERNEL, ""), machine_configuration.read().kernel)
    return kernel_obstacle(kernel)


def _disks(engine: Engine, workload: Workload) -> Disks:
    from mamushka.linux.process import initial
    from mamushka.machine.shape import MEMORY_DEFAULT

    memory = workload.settings.limits.memory or machine_configuration.read().memory or MEMORY_DEFAULT
    found = tuple(Image(layer.path, layer.kind == PMEM) for layer in layers(engine, workload, memory))
    root = os.stat(engine.layers.path(workload.layers[-1]))
    written = top(engine, workload)
    return Disks(found, written, not initial(), root.st_mode & 0o7777, root.st_uid, root.st_gid)


def put(engine: Engine, workload: Workload, disk: int) -> str:
    """Make a copy of another's disk, whose descriptor this is, the one that takes what a workload's machine writes."""
    from mamushka.machine.checkpoint import copy_disk

    copy_disk(disk, _top(engine, workload))
    return _top(engine, workload)


def _top(engine: Engine, workload: Workload) -> str:
    return f"{engine.paths.workload(workload.id)}/{DISK}"


def layers(engine: Engine, workload: Workload, memory: int) -> tuple[Layer, ...]:
    """The layers of a workload whose machine has ``memory`` bytes, uppermost first; missing images are made now.

    Slow once per layer (a second for each GB), then a look at each file. NotFound where a layer is gone, Invalid where
    EROFS has no room for something in it, Unsupported where the machine has too little memory or the image is ``host``.
    """
    paths = images(engine, workload)
    lengths = [os.stat(path).st_size for path in paths]
    kinds = placement(lengths, memory)
    return tuple(Layer(*each) for each in zip(paths, lengths, kinds, strict=True))


def images(engine: Engine, workload: Workload) -> tuple[str, ...]:
    """The files of ``layers``, without saying how the machine gets them."""
    if workload.image_id == host.ID:
        raise Unsupported(
            f"the image {host.NAME} cannot run in a machine: it is this host's own directories, bound into a container",
            hint="choose an image of a registry, or a directory by --rootfs",
        )
    directory = path_of(workload.image_id)
    if directory:
        return (_image_of(directory, f"{engine.paths.workload(workload.id)}/rootfs.erofs"),)
    # A layer that is stacked twice shows nothing further down, and overlayfs refuses it.
    return tuple(engine.layers.image(diff_id) for diff_id in dict.fromkeys(reversed(workload.layers)))


def top(engine: Engine, workload: Workload, size: int | None = None) -> str:
    """The disk that takes what the machine writes, made if it is missing; empty where its memory does (size 0).

    ``size`` is in bytes and counts when the disk is made. Invalid or Unsupported, see ``storage.top``.
    """
    from mamushka.storage import top as disk

    if size == 0:
        return ""
    path = _top(engine, workload)
    disk.make(path, disk.SIZE if size is None else size, patterns=f"{engine.paths.data}/tops")
    return path


def _image_of(directory: str, path: str) -> str:
    """A directory of the user's as it is now. It is nobody's but this workload's: its owner may change it meanwhile."""
    from mamushka.storage import erofs

    staged = f"{path}.{os.urandom(4).hex()}"
    out = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            erofs.write(root, out, os.urandom(16))
        finally:
            os.close(root)
        os.rename(staged, path)
    except BaseException:
        os.unlink(staged)
        raise
    finally:
        os.close(out)
    return path
