"""Files into and out of a workload, running or not: never beyond its root, whatever its processes do meanwhile."""

from __future__ import annotations

import os
from stat import S_ISDIR

from mamushka.engine.inspection import inspect
from mamushka.engine.rootfs import reach
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.storage.tree import Stat


def copy_out(engine: Engine, identifier: str, path: str, name: str | None) -> Iterator[bytes]:
    """See Engine.copy_out."""
    from mamushka.storage import tree

    workload = inspect(engine, identifier)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import pack

        return pack(engine, workload, path, name)
    root, below = reach(engine, workload, path)
    if name is None and below != path:
        name = os.path.basename(os.path.normpath(path))
    path = below
    try:
        tree.stat(root, path)  # what is not there is said before the first byte
    except BaseException:
        os.close(root)
        raise
    return _pack(root, path, name)


def _pack(root: int, path: str, name: str | None) -> Iterator[bytes]:
    from mamushka.storage import tree

    try:
        yield from tree.pack(root, path, name=name)
    finally:
        os.close(root)


def copy_in(engine: Engine, identifier: str, path: str, archive: Iterable[bytes], *, keep_owner: bool) -> None:
    """See Engine.copy_in."""
    from mamushka.storage import tree

    workload, owner = inspect(engine, identifier), None if keep_owner else (0, 0)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import unpack

        unpack(engine, workload, path, archive, owner)
        return
    root, path = reach(engine, workload, path)
    try:
        tree.unpack(root, path, archive, owner=owner)
    finally:
        os.close(root)


def stat(engine: Engine, identifier: str, path: str) -> Mapping[str, object]:
    """See Engine.stat."""
    from mamushka.storage import tree

    workload = inspect(engine, identifier)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import entries as listed

        return {**listed(engine, workload, path)[0], "name": os.path.basename(os.path.normpath(path))}
    root, path = reach(engine, workload, path)
    try:
        found = tree.stat(root, path)
    finally:
        os.close(root)
    return _told(found)


def entries(engine: Engine, identifier: str, path: str) -> list[Mapping[str, object]]:
    """See Engine.list_directory."""
    from mamushka.storage import tree

    workload = inspect(engine, identifier)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import entries as listed

        itself, *below = listed(engine, workload, path)
        if not S_ISDIR(itself["mode"]):
            raise Invalid(f"not a directory: {path!r}")
        return below
    root, path = reach(engine, workload, path)
    try:
        return [_told(found) for found in tree.entries(root, path)]
    finally:
        os.close(root)


def remove(engine: Engine, identifier: str, path: str, *, recursive: bool) -> None:
    """See Engine.remove_path."""
    from mamushka.storage import tree

    workload = inspect(engine, identifier)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import remove as remove_inside

        remove_inside(engine, workload, path, recursive=recursive)
        return
    root, path = reach(engine, workload, path)
    try:
        tree.remove(root, path, recursive=recursive)
    finally:
        os.close(root)


def changes(engine: Engine, identifier: str) -> list[tuple[str, str]]:
    """See Engine.changes."""
    from mamushka.engine.rootfs import mount_points, snapshot

    workload = inspect(engine, identifier)
    if _imaged(engine, workload):
        from mamushka.engine.machine_files import changes as changed

        return changed(engine, workload)
    return snapshot(engine, workload).changes(mount_points(workload))


def _imaged(engine: Engine, workload: Workload) -> bool:
    """Whether only a machine can read its root."""
    if workload.runtime != "vm":
        return False
    from mamushka.engine.machine_root import imaged

    return imaged(engine, workload)


def _told(found: Stat) -> Mapping[str, object]:
    return {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": found.mtime_ns / 1e9,
        "link": found.link,
    }
