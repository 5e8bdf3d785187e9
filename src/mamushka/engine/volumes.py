"""Volumes as the engine keeps them: storage/'s directories, and who uses them."""

from __future__ import annotations

import os

from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.storage.volume import Volume, VolumeStore

_FILTERS = ("dangling", "name", "label", "label!", "driver")


@value
class VolumeSummary:
    """One volume."""

    name: str
    path: str  # the data on the host
    created: float
    labels: Mapping[str, str] = EMPTY
    options: Mapping[str, str] = EMPTY
    anonymous: bool = False
    users: tuple[str, ...] = ()  # ids of workloads that mount it


class Volumes:
    """All volumes of this host.

    ``users`` tells which workloads mount which volume, by volume name; ``announce`` hears of each (action,
    name). Whoever starts a workload meanwhile is held off by the engine.
    """

    def __init__(
        self,
        root: str,
        users: Callable[[], Mapping[str, Sequence[str]]],
        announce: Callable[[str, str], None] = lambda _action, _name: None,
    ) -> None:
        self._root = root
        self._users = users
        self._announce = announce

    def create(
        self, name: str = "", *, labels: Mapping[str, str] = EMPTY, options: Mapping[str, str] = EMPTY
    ) -> VolumeSummary:
        """A volume; the existing one where the name is there already with the same options."""
        _device(options)
        store = self._store()
        existed = bool(name) and any(volume.name == name for volume in store.volumes())
        volume = store.create(name or os.urandom(32).hex(), labels=labels, options=options, anonymous=not name)
        if not existed:
            self._announce("create", volume.name)
        return self._summary(volume, self._users())

    def get(self, name: str) -> VolumeSummary:
        """By name. NotFound otherwise."""
        return self._summary(self._store().get(name), self._users())

    def volumes(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[VolumeSummary]:
        """All of them, by name."""
        users = self._users()
        found = [self._summary(volume, users) for volume in self._store().volumes()]
        return [volume for volume in found if _matches(volume, filters or {})]

    def remove(self, name: str, *, force: bool = False) -> None:
        """Conflict while a workload has it; ``force`` forgives that there is none."""
        users = self._users().get(name, ())
        if users:
            raise Conflict(
                f"the volume {name} is in use by {', '.join(id[:12] for id in users)}",
                hint="remove those workloads first",
            )
        try:
            self._store().remove(name)
        except NotFound:
            if not force:
                raise
            return
        self._announce("destroy", name)

    def prune(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], int]:
        """Remove anonymous (or all) volumes that no workload has: names, bytes freed."""
        removed: list[str] = []
        freed = 0
        for volume in self.volumes(filters=filters):
            if volume.users or not (all or volume.anonymous):
                continue
            size = self.size(volume.name)
            try:
                self.remove(volume.name)
            except (Conflict, NotFound):  # somebody was faster
                continue
            removed.append(volume.name)
            freed += size
        return removed, freed

    def size(self, name: str) -> int:
        """Bytes of its files."""
        return self._store().usage(name).size

    def populate(self, name: str, source: int = -1) -> bool:
        """Call before every mount of a volume: the first time it gets a copy of the directory ``source``.

        ``source`` is a descriptor of what the image has at the mount's destination, -1 where there is nothing or
        copy-up is not wanted. A volume that stands for a host directory is never written.
        """
        if _device(self._store().get(name).options):
            return False
        return self._store().populate(name, source)

    def clean(self) -> None:
        """Delete what killed processes left half made or half deleted."""
        self._store().clean()

    def _store(self) -> VolumeStore:
        from mamushka.storage.volume import VolumeStore

        return VolumeStore(self._root)

    @staticmethod
    def _summary(volume: Volume, users: Mapping[str, Sequence[str]]) -> VolumeSummary:
        return VolumeSummary(
            volume.name,
            _device(volume.options) or volume.path,
            volume.created,
            volume.labels,
            volume.options,
            volume.anonymous,
            tuple(users.get(volume.name, ())),
        )


def _device(options: Mapping[str, str]) -> str:
    """The host directory that a volume stands for (type=none, o=bind, device=PATH), or nothing."""
    for key in options:
        if key not in ("type", "o", "device"):
            raise Invalid(f"a volume has no option {key!r}", hint="type, o and device are possible")
    if not options:
        return ""
    device = options.get("device", "")
    words = options.get("o", "").split(",")
    if options.get("type", "none") != "none" or not {"bind", "rbind"} & set(words) or not device.startswith("/"):
        raise Unsupported(
            f"a volume of {dict(options)} cannot be made",
            hint="type=none, o=bind and an absolute device stand for a host directory; for memory use --tmpfs",
        )
    return device


def _matches(volume: VolumeSummary, filters: Mapping[str, Sequence[str]]) -> bool:
    """Docker's filters: every key must hold, one of its values is enough; all labels must hold."""
    for key, wanted in filters.items():
        if key not in _FILTERS:
            raise Invalid(f"volumes have no filter {key!r}", hint=f"{', '.join(_FILTERS)} are possible")
        if key == "label":
            holds = all(_has_label(volume, label) for label in wanted)
        elif key == "label!":
            holds = not any(_has_label(volume, label) for label in wanted)
        elif key == "dangling":
            holds = any((word in ("1", "true")) is (not volume.users) for word in wanted)
        elif key == "name":
            holds = any(word in volume.name for word in wanted)
        else:
            holds = "local" in wanted
        if not holds:
            return False
    return True


def _has_label(volume: VolumeSummary, label: str) -> bool:
    key, equals, content = label.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == content)
