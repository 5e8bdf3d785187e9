"""The root of a workload: its image's layers below one writable top, mounted without the host's mount table.

A workload's directory is its snapshot: ``upper`` and ``work`` are the writable top, beside them lie its own files.
"""

from __future__ import annotations

import os

from mamushka.engine import host
from mamushka.engine.directory import path_of
from mamushka.errors import NotFound, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.storage.snapshot import Snapshot

DISK = "top.ext4"  # of a machine that mounts its layers itself: its name in the workload's directory
_BLOCK = 512  # bytes in a unit of st_blocks: stat(2)


def lowers(engine: Engine, image_id: str, layers: Sequence[str]) -> tuple[str, ...]:
    """The directories of an image's layers, uppermost first."""
    if image_id == host.ID:
        return (host.skeleton(f"{engine.paths.data}/host"),)
    directory = path_of(image_id)
    if directory:
        return (directory,)
    return tuple(engine.layers.path(diff_id) for diff_id in reversed(layers))


def snapshot(engine: Engine, workload: Workload) -> Snapshot:
    """The workload's writable top above its image."""
    return engine.snapshots.get(workload.id, lowers(engine, workload.image_id, workload.layers))


def written(directory: str) -> int:
    """Bytes of what a workload with this directory has written: the files of its top, and what its disk takes up."""
    from mamushka.storage.usage import usage

    size = usage(f"{directory}/upper").size
    try:
        return size + os.stat(f"{directory}/{DISK}").st_blocks * _BLOCK
    except FileNotFoundError:
        return size


def mount_points(workload: Workload) -> tuple[str, ...]:
    """Where something is mounted while it runs; what the runtime makes there is not the workload's doing."""
    from mamushka.container.defaults import MOUNTS

    programs = host.mounts() if workload.image_id == host.ID else ()
    return (
        *(item.destination for item in (*MOUNTS, *programs, *workload.settings.mounts)),
        *(destination for destination, _ in workload.volumes),
        *(f"/etc/{name}" for name in ("hostname", "hosts", "resolv.conf")),
    )


def open_root(engine: Engine, workload: Workload) -> int:
    """The root as the workload sees it where it runs, else its layers mounted for the occasion; yours to close.

    Unsupported where it is on a machine's own disk.
    """
    from mamushka.engine.workload import ACTIVE

    check_visible(engine, workload)

    if workload.status in ACTIVE:
        try:
            return engine.runtime(workload.runtime).open_root(workload.id)
        except NotFound:
            pass  # it has just ended
    return snapshot(engine, workload).mount()


def check_visible(engine: Engine, workload: Workload) -> None:
    """Unsupported where what a workload has written is on a machine's own disk."""
    if workload.runtime == "vm":
        from mamushka.engine.machine_root import refuse

        refuse(engine, workload)


def reach(engine: Engine, workload: Workload, path: str) -> tuple[int, str]:
    """(a directory of the host's, yours to close; the path in it) where a path of the workload's leads.

    What a machine has mounted over its root cannot be seen from outside: a volume or directory of the host's is reached
    where it lies, and memory of the guest's not at all (Unsupported).
    """
    from mamushka.engine.workload import ACTIVE

    if workload.runtime == "vm" and workload.status in ACTIVE:
        wanted = os.path.normpath("/" + path.lstrip("/"))  # two slashes would stay two
        for destination, source in sorted(_over(engine, workload).items(), key=lambda item: -len(item[0])):
            if wanted != destination and not wanted.startswith(f"{destination}/"):
                continue
            if not source:
                raise Unsupported(
                    f"{destination} is the machine's own memory, which cannot be reached from outside",
                    hint=f"mamushka exec {workload.name} cat {path}",
                )
            rest = wanted[len(destination) :]
            if not os.path.isdir(source):
                source, name = os.path.split(source)
                rest = f"/{name}"
            return os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), rest or "/"
    return open_root(engine, workload), path


def _over(engine: Engine, workload: Workload) -> dict[str, str]:
    """What is mounted over a workload's root: the host's path by destination, empty for memory."""
    from mamushka.container.defaults import MOUNTS

    found = {item.destination: "" for item in MOUNTS}
    for item in workload.settings.mounts:
        found[os.path.normpath(item.destination)] = item.source if item.kind == "bind" else ""
    for destination, name in workload.volumes:
        found[os.path.normpath(destination)] = engine.volumes.get(name).path
    return found
