"""Volumes as the engine keeps them."""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    """All volumes of this host."""

    def create(
        self, name: str = "", *, labels: Mapping[str, str] = EMPTY, options: Mapping[str, str] = EMPTY
    ) -> VolumeSummary:
        """A volume; the existing one where the name is there already with the same options."""
        raise NotImplementedError

    def get(self, name: str) -> VolumeSummary:
        """By name. NotFound otherwise."""
        raise NotImplementedError

    def volumes(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[VolumeSummary]:
        """All of them, by name."""
        raise NotImplementedError

    def remove(self, name: str, *, force: bool = False) -> None:
        """Conflict while a workload has it."""
        raise NotImplementedError

    def prune(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], int]:
        """Remove anonymous (or all) volumes that no workload has: names, bytes freed."""
        raise NotImplementedError
