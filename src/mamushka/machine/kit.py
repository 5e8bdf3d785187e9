"""The first file system of an image's guest: our first process, and exactly the modules that it needs, in order.

It depends on the kernel and on nothing of the machine, so it is made once for each kernel and kept. A guest's first
process inserts ``/modules/NAME`` in the order of ``/modules/order`` (guest/boot.c).
"""

from __future__ import annotations

import os

from mamushka.machine.boot.initramfs import Member, archive, program
from mamushka.machine.boot.modules import Modules, module_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.machine.boot.kernels import Kernel

# What guests use, each where the kernel has it: the transport, the devices, the file systems. Every module is read,
# unpacked and linked at each boot, so those for disks and layers come to machines that have some.
SHARED = (
    "virtio_mmio", "vmw_vsock_virtio_transport", "virtiofs", "overlay", "virtio_net", "virtio_rng", "af_packet",
)  # fmt: skip
WANTED = (*SHARED, "virtio_blk", "virtio_pmem", "nd_pmem", "erofs", "ext4", "virtio_balloon")
# Says of what an archive was made; another means that it is made anew.
_FORMAT = 2


def initramfs(kernel: Kernel, init: str, cache: str, wanted: tuple[str, ...] = WANTED) -> int:
    """A descriptor of the archive for a kernel; ``init`` is the first process's file, ``cache`` where it is kept."""
    path = f"{cache}/{_name(kernel, init, wanted)}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    os.makedirs(cache, 0o755, exist_ok=True)
    staged = f"{path}.{os.getpid()}"
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(archive(members(kernel, init, wanted)))
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.rename(staged, path)
    except BaseException:
        os.close(fd)
        os.unlink(staged)
        raise
    return fd


def _name(kernel: Kernel, init: str, wanted: tuple[str, ...]) -> str:
    """Of all that the content follows from: the files' names, sizes and times."""
    from mamushka.spec.digest import sha256

    said = [str(_FORMAT), kernel.version, *_stamp(init), *_stamp(f"{kernel.modules}/modules.dep"), *wanted]
    return f"initramfs-{sha256(' '.join(said).encode()).encoded[:32]}"


def _stamp(path: str) -> tuple[str, ...]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return path, "absent"
    return path, str(found.st_size), str(found.st_mtime_ns)


def members(kernel: Kernel, init: str, wanted: tuple[str, ...] = WANTED) -> Iterator[Member]:
    """What is in it."""
    with open(init, "rb") as file:
        yield program("init", file.read())
    yield Member("dev/console", 0o020600, device=(5, 1))
    if not kernel.modules:
        return
    modules = Modules(kernel.modules)
    order = modules.order(name for name in wanted if modules.has(name))
    yield from _inserted(modules, order)


def _inserted(modules: Modules, order: Iterable[str]) -> Iterator[Member]:
    names = []
    for path in order:
        name = f"{module_name(path)}.ko"
        names.append(name)
        yield Member(f"modules/{name}", content=modules.read(path))
    yield Member("modules/order", content="\n".join([*names, ""]).encode())
