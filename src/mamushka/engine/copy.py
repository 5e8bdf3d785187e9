"""Files into and out of a workload, running or not: never beyond its root, whatever its processes do meanwhile.

Who can read the root decides who is asked: this process, or, where it is on a machine's own disk, a machine
(machine_files.py). Both answer alike.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from mamushka.engine.rootfs import reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Protocol

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.storage.tree import Stat

    class Files(Protocol):
        """The files of one workload, by paths in its root."""

        def pack(self, path: str, name: str | None) -> Iterator[bytes]:
            """See Engine.copy_out. What is not there is said before the first byte."""

        def unpack(self, path: str, archive: Iterable[bytes], owner: tuple[int, int] | None) -> None:
            """See Engine.copy_in; ``owner`` of all that is made, else the archive's."""

        def stat(self, path: str) -> Mapping[str, object]:
            """See Engine.stat."""

        def entries(self, path: str) -> list[Mapping[str, object]]:
            """See Engine.list_directory."""

        def remove(self, path: str, *, recursive: bool) -> None:
            """See Engine.remove_path."""

        def changes(self) -> list[tuple[str, str]]:
            """See Engine.changes."""


def files(engine: Engine, identifier: str) -> Files:
    """Of a workload by name or id."""
    from mamushka.engine.inspection import inspect

    workload = inspect(engine, identifier)
    if workload.runtime == "vm":
        from mamushka.engine.machine_root import imaged

        if imaged(engine, workload):
            from mamushka.engine.machine_files import MachineFiles

            return MachineFiles(engine, workload)
    return _Files(engine, workload)


class _Files:
    """Of a root that this process can read; see ``Files``."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine, self._workload = engine, workload

    @contextmanager
    def _reached(self, path: str) -> Iterator[tuple[int, str]]:
        root, below = reach(self._engine, self._workload, path)
        try:
            yield root, below
        finally:
            os.close(root)

    def pack(self, path: str, name: str | None) -> Iterator[bytes]:
        from mamushka.storage import tree

        root, below = reach(self._engine, self._workload, path)
        if name is None and below != path:
            name = os.path.basename(os.path.normpath(path))
        try:
            tree.stat(root, below)
        except BaseException:
            os.close(root)
            raise
        return _packed(root, below, name)

    def unpack(self, path: str, archive: Iterable[bytes], owner: tuple[int, int] | None) -> None:
        from mamushka.storage import tree

        with self._reached(path) as (root, below):
            tree.unpack(root, below, archive, owner=owner)

    def stat(self, path: str) -> Mapping[str, object]:
        from mamushka.storage import tree

        with self._reached(path) as (root, below):
            return _told(tree.stat(root, below))

    def entries(self, path: str) -> list[Mapping[str, object]]:
        from mamushka.storage import tree

        with self._reached(path) as (root, below):
            return [_told(found) for found in tree.entries(root, below)]

    def remove(self, path: str, *, recursive: bool) -> None:
        from mamushka.storage import tree

        with self._reached(path) as (root, below):
            tree.remove(root, below, recursive=recursive)

    def changes(self) -> list[tuple[str, str]]:
        from mamushka.engine.rootfs import mount_points, snapshot

        return snapshot(self._engine, self._workload).changes(mount_points(self._workload))


def _packed(root: int, path: str, name: str | None) -> Iterator[bytes]:
    from mamushka.storage import tree

    try:
        yield from tree.pack(root, path, name=name)
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
