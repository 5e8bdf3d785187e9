"""Files into and out of a workload, running or not: never beyond its root, whatever its processes do meanwhile."""

from __future__ import annotations

import os

from mamushka.engine.inspection import inspect
from mamushka.engine.rootfs import reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mamushka.engine.engine import Engine
    from mamushka.storage.tree import Stat


def copy_out(engine: Engine, identifier: str, path: str, name: str | None) -> Iterator[bytes]:
    """See Engine.copy_out."""
    from mamushka.storage import tree

    root, below = reach(engine, inspect(engine, identifier), path)
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

    root, path = reach(engine, inspect(engine, identifier), path)
    try:
        tree.unpack(root, path, archive, owner=None if keep_owner else (0, 0))
    finally:
        os.close(root)


def stat(engine: Engine, identifier: str, path: str) -> Mapping[str, object]:
    """See Engine.stat."""
    from mamushka.storage import tree

    root, path = reach(engine, inspect(engine, identifier), path)
    try:
        found = tree.stat(root, path)
    finally:
        os.close(root)
    return _told(found)


def entries(engine: Engine, identifier: str, path: str) -> list[Mapping[str, object]]:
    """See Engine.list_directory."""
    from mamushka.storage import tree

    root, path = reach(engine, inspect(engine, identifier), path)
    try:
        return [_told(found) for found in tree.entries(root, path)]
    finally:
        os.close(root)


def remove(engine: Engine, identifier: str, path: str, *, recursive: bool) -> None:
    """See Engine.remove_path."""
    from mamushka.storage import tree

    root, path = reach(engine, inspect(engine, identifier), path)
    try:
        tree.remove(root, path, recursive=recursive)
    finally:
        os.close(root)


def _told(found: Stat) -> Mapping[str, object]:
    return {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": found.mtime_ns / 1e9,
        "link": found.link,
    }
