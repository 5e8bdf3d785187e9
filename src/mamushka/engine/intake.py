"""Bringing images in: a lease while it lasts, and nothing useless left when it fails.

A pull that breaks off keeps what it has, for the next one to go on from. One that was refused, or for which
the disk is too small, will not go on: what it brought and nothing names is removed at once.
"""

from __future__ import annotations

from errno import EDQUOT, ENOSPC

from mamushka.errors import Invalid, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from mamushka.engine.untag import Removal
    from mamushka.image.store import ImageStore


class Intake:
    """A context manager around whatever adds blobs and layers; ``what`` begins the error of a full disk."""

    def __init__(self, store: ImageStore, removal: Removal, what: str) -> None:
        self._store, self._removal, self._what = store, removal, what

    def __enter__(self) -> None:
        self._lease = self._store.lease()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lease.close()
        full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
        if full or isinstance(error, Invalid):
            self._removal.collect(partial=full)
        if full:
            raise Unavailable(
                f"{self._what}: no space left in {self._store.root} or beside it",
                hint="make room, perhaps with: mamushka system prune --all",
            ) from error
