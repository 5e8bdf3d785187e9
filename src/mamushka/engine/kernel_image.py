"""Kernels that travel as images: what machines boot is pulled, verified, tagged and removed like what they run.

    --kernel image:REFERENCE

The image has its files where packages put them (``boot/vmlinuz-VERSION``, ``lib/modules/VERSION``) or plainly
(``vmlinuz``, ``modules``): a distribution's image with its kernel's package installed is one, and so is one of a single
layer. It is unpacked once, to ``machines/kernels/ID``, and used from there by every machine.

The image is a stranger's. What is taken from it are directories and the content of regular files, no link and no owner:
a link would lead into this host's files, and what is found there into a guest.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISREG

from mamushka.errors import Invalid, NotFound, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.images import ImageSummary
    from mamushka.engine.settings import Settings

PREFIX = "image:"
# What of an image makes a kernel; those that are there.
_TREES = ("boot", "lib/modules", "usr/lib/modules", "modules")
# A distribution's kernel with all its modules takes 300 MiB, with their symbols 4 GiB.
_SIZE_MAX = 8 << 30
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def settle(engine: Engine, settings: Settings) -> Settings:
    """Settings whose kernel is a place on this host: an image that is named is unpacked, and pulled where it is not
    here. NotFound and what a pull raises; Unsupported for an image that has no kernel."""
    from mamushka.engine import machine_configuration
    from mamushka.engine.runtimes import KERNEL
    from mamushka.values import replace

    named = settings.annotations.get(KERNEL, "") or machine_configuration.read().kernel
    if not named.startswith(PREFIX):
        return settings
    return replace(settings, annotations={**settings.annotations, KERNEL: place(engine, named[len(PREFIX) :])})


def place(engine: Engine, reference: str) -> str:
    """The directory that an image's kernel was unpacked to."""
    if not reference:
        raise Invalid("a kernel's image has no name", hint=f"as in {PREFIX}registry.example/kernels/debian:12")
    try:
        engine.images.get(reference)
    except NotFound:
        for _ in engine.images.pull(reference):
            pass
    with engine.images.lease():  # its layers are not removed meanwhile
        image = engine.images.get(reference)
        target = f"{_above(engine)}/{image.id.rpartition(':')[2]}"
        if not os.path.isdir(target):
            _unpack(engine, reference, image, target)
    return target


def prune(engine: Engine) -> int:
    """Remove the kernels that no workload names; the bytes that were freed."""
    from mamushka.engine.runtimes import KERNEL
    from mamushka.engine.staging import Staging
    from mamushka.storage.usage import usage

    unpacked = _names(_above(engine))
    if not unpacked:
        return 0
    used = {workload.settings.annotations.get(KERNEL, "") for workload in engine.workloads(all=True)}
    freed = 0
    with Staging(engine) as staging:
        for name in unpacked:
            path = f"{_above(engine)}/{name}"
            if path not in used:
                freed += usage(path).size
                os.rename(path, f"{staging.path}/{name}")  # at once, or who is killed would leave a part of one
    return freed


def _above(engine: Engine) -> str:
    return f"{engine.paths.made}/kernels"


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _unpack(engine: Engine, reference: str, image: ImageSummary, target: str) -> None:
    from mamushka.engine.rootfs import lowers
    from mamushka.engine.staging import Staging
    from mamushka.machine.boot import kernels
    from mamushka.storage import overlay

    layers = lowers(engine, image.id, image.layers)
    root = overlay.mount(layers, read_only=True)
    try:
        with Staging(engine) as staging:
            staged = f"{staging.path}/kernel"
            os.mkdir(staged, 0o700)
            _take(root, staged)
            try:
                kernels.in_directory(staged)
            except NotFound as error:
                raise Unsupported(
                    f"the image {reference} has no kernel",
                    hint="it needs boot/vmlinuz-VERSION and lib/modules/VERSION, or vmlinuz and modules",
                ) from error
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            try:
                os.rename(staged, target)
            except OSError:
                if not os.path.isdir(target):  # another one was quicker
                    raise
    finally:
        os.close(root)


def _take(root: int, target: str) -> None:
    """Copy what makes a kernel."""
    from mamushka.linux.fd import open_in_root
    from mamushka.machine.boot.kernels import PLAIN

    rest, seen = _SIZE_MAX, set()
    for name in _TREES:
        try:
            tree = open_in_root(root, name.encode(), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            found = os.fstat(tree)
            if (found.st_dev, found.st_ino) in seen:  # lib is a link to usr/lib
                continue
            seen.add((found.st_dev, found.st_ino))
            rest = _copy_tree(tree, f"{target}/{name}", rest)
        finally:
            os.close(tree)
    for name in PLAIN:
        rest = _copy_file(root, name, f"{target}/{name}", rest)


def _copy_tree(tree: int, target: str, rest: int) -> int:
    from mamushka.storage.pack import walk

    os.makedirs(target, 0o700)
    for path, at, name in walk(tree):
        beside = f"{target}/{os.fsdecode(path)}"
        if S_ISDIR(os.lstat(name, dir_fd=at).st_mode):
            os.mkdir(beside, 0o700)
        else:
            rest = _copy_file(at, os.fsdecode(name), beside, rest)
    return rest


def _copy_file(at: int, name: str, target: str, rest: int) -> int:
    """Its content, if it is a regular file; how much more there may be."""
    from mamushka.linux.fallocate import copy

    try:
        source = os.open(name, _READ | os.O_CLOEXEC, dir_fd=at)
    except OSError:  # a link, or nothing
        return rest
    try:
        found = os.fstat(source)
        if not S_ISREG(found.st_mode):
            return rest
        if found.st_size > rest:
            raise Invalid(f"a kernel's image has more than {_SIZE_MAX >> 30} GiB of kernel and modules")
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy(source, fd, found.st_size)
        finally:
            os.close(fd)
        return rest - found.st_size
    finally:
        os.close(source)
