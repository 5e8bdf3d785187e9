"""What is told about an image, and about something that takes its time."""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


@value
class ImageSummary:
    """One image present here."""

    id: str  # digest of the config, "sha256:…"
    digest: str  # digest of the manifest or index it was pulled by
    names: tuple[str, ...]  # familiar names with tags: "alpine:latest", "localhost:5000/x:1"
    digests: tuple[str, ...]  # "alpine@sha256:…"
    created: float
    size: int  # bytes of all unpacked layers
    platform: str
    layers: tuple[str, ...]  # diff_ids
    labels: Mapping[str, str] = EMPTY
    config: Mapping[str, object] = EMPTY  # the whole config document as parsed
    parent: str = ""


@value
class Progress:
    """Something moved. ``layer`` is a short id, empty for lines about the whole."""

    status: str  # Docker's words: Pulling fs layer, Downloading, Extracting, Pull complete, Already exists, …
    layer: str = ""
    current: int = 0
    total: int = 0
