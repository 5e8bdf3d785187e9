"""Writable tops: what one workload changes above the layers it shares with others.

    root/<id>/upper    what overlayfs writes
    root/<id>/work     overlayfs's own
    root/.gone.<id>    being deleted

A top appears and disappears by one rename of its directory.
"""

from __future__ import annotations

import os

from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

_GONE = ".gone."


@value
class Snapshot:
    """A chain of layers, uppermost first, with one writable top."""

    id: str
    upper: str
    work: str
    lowers: tuple[str, ...]

    def mount(self, *, read_only: bool = False, volatile: bool = False, id_map: int = -1) -> int:
        """All of it as a detached mount; see overlay.mount for ``volatile`` and ``id_map``."""
        from mamushka.storage import overlay

        return overlay.mount(
            self.lowers, upper=self.upper, work=self.work, read_only=read_only, volatile=volatile, id_map=id_map
        )

    def changes(self, mount_points: Iterable[str] = ()) -> list[tuple[str, str]]:
        """What differs from the layers, in path order: (A | C | D, absolute path).

        What a runtime made at ``mount_points`` only to mount on is no change.
        """
        from mamushka.storage.changes import changes

        return [
            (change.kind, "/" + os.fsdecode(change.path)) for change in changes(self.upper, self.lowers, mount_points)
        ]

    def pack(self, mount_points: Iterable[str] = ()) -> Iterator[bytes]:
        """The changes as a layer: a tar stream with the image-spec's whiteouts."""
        from mamushka.storage.changes import pack_changes

        return pack_changes(self.upper, self.lowers, mount_points)

    def size(self) -> int:
        """Bytes of the files in the writable top, each inode once."""
        from mamushka.storage.usage import usage

        return usage(self.upper).size


class SnapshotStore:
    """The writable tops below one directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def create(self, id: str, lowers: Sequence[str]) -> Snapshot:
        """A fresh, empty top. Conflict when the id is taken. Its root looks like that of the uppermost layer."""
        home = self._home(id)
        staging = f"{self.root}/{_GONE}{id}.{os.urandom(4).hex()}"
        try:
            os.mkdir(staging, 0o700)
        except FileNotFoundError:
            from mamushka.linux.inode import spread

            os.makedirs(self.root, 0o700, exist_ok=True)
            spread(self.root)
            os.mkdir(staging, 0o700)
        os.mkdir(f"{staging}/work", 0o700)
        os.mkdir(f"{staging}/upper", 0o755)
        _look_like(f"{staging}/upper", lowers[0])
        try:
            os.rename(staging, home)
        except OSError as error:  # ENOTEMPTY or EEXIST: rename replaces empty directories only
            self._delete(staging)
            raise Conflict(f"there is a writable top {id} already") from error
        return self.get(id, lowers)

    def get(self, id: str, lowers: Sequence[str]) -> Snapshot:
        """The top with this id, above the layers it was made for."""
        home = self._home(id)
        if not os.path.isdir(home):
            raise NotFound(f"there is no writable top {id}")
        return Snapshot(id, f"{home}/upper", f"{home}/work", tuple(lowers))

    def ids(self) -> list[str]:
        """All tops."""
        try:
            return sorted(name for name in os.listdir(self.root) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def remove(self, id: str) -> None:
        """Delete a top, however deep or immutable what is in it; harmless when it is gone."""
        gone = f"{self.root}/{_GONE}{id}.{os.urandom(4).hex()}"
        try:
            os.rename(self._home(id), gone)
        except FileNotFoundError:
            return
        self._delete(gone)

    def clean(self, wanted: Container[str]) -> None:
        """Delete the tops that nobody wants and what killed processes left of others.

        The caller holds off new workloads meanwhile: a top that is being made looks like one that is abandoned.
        """
        for id in self.ids():
            if id not in wanted:
                self.remove(id)
        try:
            leftovers = [name for name in os.listdir(self.root) if name.startswith(_GONE)]
        except FileNotFoundError:
            return
        for name in leftovers:
            self._delete(f"{self.root}/{name}")

    def _home(self, id: str) -> str:
        if not id or id.startswith(".") or "/" in id or "\0" in id:
            raise Invalid(f"{id!r} cannot name a writable top")
        return f"{self.root}/{id}"

    @staticmethod
    def _delete(path: str) -> None:
        from mamushka.storage.remove import remove

        remove(path)


def _look_like(path: str, lower: str) -> None:
    """Give a top's root the owner and mode of the root below it: overlayfs shows the top's."""
    found = os.stat(lower)
    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(path, found.st_uid, found.st_gid)
    os.chmod(path, found.st_mode & 0o7777)
