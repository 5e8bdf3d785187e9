"""The root of a machine: images of its layers, and a disk for what it writes, as files that the monitor opens.

In the machine the layers are mounted read-only, uppermost first, below an overlay whose top is the disk. Nothing is
mounted on the host. The images are the layer store's: every machine with a layer opens the same file, and that is what
lets them share its pages.
"""

from __future__ import annotations

import os

from mamushka.engine import host
from mamushka.engine.directory import path_of
from mamushka.errors import Unsupported
from mamushka.storage.placement import Layer, placement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload


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
    path = f"{engine.paths.workload(workload.id)}/top.ext4"
    disk.make(path, disk.SIZE if size is None else size)
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
