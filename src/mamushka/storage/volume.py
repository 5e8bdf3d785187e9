"""Volumes: directories with a name that outlive what uses them.

    root/<name>/data           what is mounted
    root/<name>/volume.json    labels, options, when it was made: enough to know the volume without a database
    root/<name>/fresh          there until the volume has been mounted once
    root/.<name>.<random>       being made or deleted

A volume appears and disappears by one rename. Content of an image gets into a fresh volume the same way: it
is copied beside ``data`` and takes its place in one step.
"""

from __future__ import annotations

import os
import time

from mamushka import document
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.storage.usage import Usage

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_FURTHER = _FIRST | frozenset("_.-")


@value
class Volume:
    """One volume; ``path`` is the directory to mount."""

    name: str
    path: str
    created: float  # seconds since the epoch
    labels: Mapping[str, str] = EMPTY
    options: Mapping[str, str] = EMPTY
    anonymous: bool = False


class VolumeStore:
    """The volumes below one directory. Any number of threads and processes may use it at once."""

    def __init__(self, root: str) -> None:
        self.root = root

    def create(
        self,
        name: str,
        *,
        labels: Mapping[str, str] = EMPTY,
        options: Mapping[str, str] = EMPTY,
        anonymous: bool = False,
    ) -> Volume:
        """A volume; the existing one of that name where its options are the same, Conflict otherwise."""
        home = self._home(name)
        if not os.path.isdir(home):
            record = {
                "created": time.time(),
                "labels": dict(labels),
                "options": dict(options),
                "anonymous": anonymous,
            }
            self._make(name, document.dump(record))
        volume = self.get(name)
        if dict(volume.options) != dict(options):
            raise Conflict(f"the volume {name} exists with other options: {dict(volume.options)}")
        return volume

    def get(self, name: str) -> Volume:
        """By name. NotFound otherwise."""
        home = self._home(name)
        try:
            with open(f"{home}/volume.json", "rb") as file:
                fields = document.parse(file.read(), f"the record of volume {name}")
        except FileNotFoundError as error:
            raise NotFound(f"there is no volume {name}") from error
        return Volume(name, f"{home}/data", fields["created"], fields["labels"], fields["options"], fields["anonymous"])

    def volumes(self) -> list[Volume]:
        """All of them, by name."""
        found = []
        for name in self._names():
            if not name.startswith("."):
                try:
                    found.append(self.get(name))
                except NotFound:  # removed meanwhile
                    continue
        return found

    def remove(self, name: str) -> None:
        """Delete it and what is in it. NotFound when there is none."""
        from mamushka.storage.remove import remove

        gone = f"{self.root}/.{name}.{os.urandom(4).hex()}"
        try:
            os.rename(self._home(name), gone)
        except FileNotFoundError as error:
            raise NotFound(f"there is no volume {name}") from error
        remove(gone)

    def usage(self, name: str) -> Usage:
        """What its content takes."""
        from mamushka.storage.usage import usage

        return usage(self.get(name).path)

    def populate(self, name: str, source: int = -1) -> bool:
        """Before a mount: a volume that never was mounted gets a copy of the directory ``source``.

        -1 is for a mount that does not want it. Later calls do nothing, so call it before every mount. Whether
        anything was copied.
        """
        home = self._home(name)
        fresh = f"{home}/fresh"
        if not os.path.exists(fresh):
            return False
        from mamushka.linux.flock import Lock

        with Lock(f"{home}/lock"):
            if not os.path.exists(fresh):
                return False
            copied = source >= 0 and not os.listdir(f"{home}/data") and self._copy_up(home, source)
            os.unlink(fresh)
        return copied

    def clean(self) -> None:
        """Delete what killed processes left of volumes that they were making or deleting.

        The caller holds off others that make or remove volumes meanwhile.
        """
        from mamushka.storage.remove import remove

        for name in self._names():
            remove(f"{self.root}/{name}" if name.startswith(".") else f"{self.root}/{name}/copy")

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []

    def _home(self, name: str) -> str:
        if not 0 < len(name) <= 200 or name[0] not in _FIRST or not _FURTHER.issuperset(name):
            raise Invalid(
                f"{name[:200]!r} cannot name a volume",
                hint="use letters, digits, '_', '.' and '-', a letter or digit first; a host path starts with '/'",
            )
        return f"{self.root}/{name}"

    def _make(self, name: str, record: bytes) -> None:
        from mamushka.storage.remove import remove

        staging = f"{self.root}/.{name}.{os.urandom(4).hex()}"
        os.makedirs(self.root, 0o700, exist_ok=True)
        remove(staging)
        os.mkdir(staging, 0o755)
        os.mkdir(f"{staging}/data", 0o755)
        for file_name, content in (("volume.json", record), ("fresh", b"")):
            with open(f"{staging}/{file_name}", "xb") as file:
                file.write(content)
        try:
            os.rename(staging, self._home(name))
        except OSError:  # somebody was faster; a directory that is not empty is not replaced
            remove(staging)

    @staticmethod
    def _copy_up(home: str, source: int) -> bool:
        from mamushka.storage.copy import copy
        from mamushka.storage.remove import remove

        staging = f"{home}/copy"
        remove(staging)  # of somebody who was killed
        os.mkdir(staging, 0o700)
        fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy(source, fd)
        finally:
            os.close(fd)
        os.rename(staging, f"{home}/data")
        return True
