"""An image as Docker shows it: the fields of ``images`` and ``history``, and the JSON of ``inspect``."""

from __future__ import annotations

from mamushka.interfaces.docker import units
from mamushka.interfaces.docker.container import short, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from mamushka.engine.images import ImageSummary

_NONE = "<none>"


def split(name: str) -> tuple[str, str]:
    """(repository, tag) of a familiar name; a port's colon is not a tag's."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, _NONE)


def rows(image: ImageSummary, *, truncate: bool = True, now: float | None = None) -> Iterator[dict[str, Any]]:
    """The fields that ``images --format`` knows, once per name; an image without names is there once."""
    digests = dict(digest.split("@", 1) for digest in image.digests if "@" in digest)
    for repository, tag in [split(name) for name in image.names] or [(next(iter(digests), _NONE), _NONE)]:
        yield {
            "Containers": "N/A",
            "CreatedAt": units.local_time(image.created),
            "CreatedSince": units.ago(image.created, now) if image.created else "N/A",
            "Digest": digests.get(repository, _NONE),
            "ID": short(image.id) if truncate else image.id,
            "Platform": image.platform,
            "Repository": repository,
            "SharedSize": "N/A",
            "Size": units.human_size(image.size),
            "Tag": tag,
            "UniqueSize": "N/A",
            "VirtualSize": units.human_size(image.size),
        }


def inspect(image: ImageSummary) -> dict[str, Any]:
    """The document of ``GET /images/{name}/json``; Config keeps its keys as they are in the image."""
    document: Mapping[str, Any] = image.config
    system, _, architecture = image.platform.partition("/")
    architecture, _, variant = architecture.partition("/")
    return {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.digests),
        "Parent": image.parent,
        "Comment": _comment(document),
        "Created": units.rfc3339(image.created),
        "Author": document.get("author", ""),
        "Config": _plain(document.get("config") or {}),
        "Architecture": architecture,
        "Variant": variant,
        "Os": system,
        "Size": image.size,
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Descriptor": {"digest": image.digest},
        "Metadata": {"LastTagTime": units.rfc3339(0)},
    }


def _comment(document: Mapping[str, Any]) -> str:
    history = document.get("history") or [{}]
    return str(history[-1].get("comment", ""))


def _plain(item: Any) -> Any:
    """Mappings as dicts, all the way down."""
    if hasattr(item, "keys"):
        return {key: _plain(item[key]) for key in item.keys()}  # noqa: SIM118
    return [_plain(entry) for entry in item] if isinstance(item, list | tuple) else item


def history_row(step: Mapping[str, Any], *, truncate: bool = True, human: bool = True) -> dict[str, Any]:
    """The fields that ``history --format`` knows."""
    identifier = str(step.get("id") or "<missing>")
    created, created_by = float(step.get("created") or 0.0), str(step.get("created_by") or "")
    comment, size = str(step.get("comment") or ""), int(step.get("size") or 0)
    created_by = created_by.replace("\t", " ")
    return {
        "ID": short(identifier) if truncate and identifier != "<missing>" else identifier,
        "CreatedSince": units.ago(created) if human else units.rfc3339(created),
        "CreatedAt": units.rfc3339(created),
        "CreatedBy": shortened(created_by, 45) if truncate else created_by,
        "Size": units.human_size(size) if human else str(size),
        "Comment": comment,
    }
