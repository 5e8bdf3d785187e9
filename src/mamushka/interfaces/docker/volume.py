"""A volume as Docker shows it."""

from __future__ import annotations

from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.volumes import VolumeSummary


def row(volume: VolumeSummary) -> dict[str, Any]:
    """The fields that ``volume ls --format`` knows."""
    return {
        "Availability": "N/A",
        "Driver": "local",
        "Group": "N/A",
        "Label": lambda key: volume.labels.get(key, ""),
        "Labels": ",".join(f"{key}={word}" for key, word in volume.labels.items()),
        "Links": str(len(volume.users)),
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    }


def inspect(volume: VolumeSummary) -> dict[str, Any]:
    """The document of ``GET /volumes/{name}``."""
    return {
        "CreatedAt": units.rfc3339(volume.created),
        "Driver": "local",
        "Labels": dict(volume.labels) or None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }
