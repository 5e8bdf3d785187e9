"""Images on the wire: descriptors, manifests, indexes and configs of the OCI image-spec and Docker's schema 2.

Both families have the same shape under different media types, so one set of values holds them. Documents
arrive from strangers: each is bounded, checked once here, and keeps its bytes as they came in ``raw``, since
its digest is its name. What a document has beyond these fields stays in ``raw`` and travels along.
"""

from __future__ import annotations

from mamushka import document
from mamushka.errors import Invalid, Unsupported
from mamushka.spec import digest as digests
from mamushka.spec.digest import Digest
from mamushka.spec.platform import Platform, parse_platform
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPTED = (*INDEX_TYPES, *MANIFEST_TYPES)
_LAYER_PREFIXES = (
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    DOCKER_LAYER,
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)

# The kernel stacks at most 500 lower directories (OVL_MAX_STACK, fs/overlayfs/params.h).
LAYERS_MAX = 500
# Far above any published index (some have a few hundred); the document bound alone would allow 40,000.
MANIFESTS_MAX = 4096
# A blob larger than this is a lie: 16 TiB is the largest file of ext4.
BLOB_MAX = 16 << 40
_HISTORY_MAX = 4096


@value
class Descriptor:
    """A typed, sized and hashed pointer to content. image-spec, descriptor.md."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = EMPTY
    urls: tuple[str, ...] = ()
    artifact_type: str = ""

    @property
    def is_index(self) -> bool:
        """Whether it points to an index (a manifest list)."""
        return self.media_type in INDEX_TYPES

    @property
    def is_layer(self) -> bool:
        """Whether it points to a root filesystem's layer."""
        return self.media_type.startswith(_LAYER_PREFIXES)

    def document(self) -> dict[str, object]:
        """The JSON object of it."""
        body: dict[str, object] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            body["urls"] = self.urls
        if self.annotations:
            body["annotations"] = self.annotations
        if self.platform is not None:
            body["platform"] = self.platform.document()
        if self.artifact_type:
            body["artifactType"] = self.artifact_type
        return body


@value
class Manifest:
    """One image for one platform: its config and its layers, lowest first. image-spec, manifest.md."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    raw: bytes
    annotations: Mapping[str, str] = EMPTY
    subject: Descriptor | None = None
    artifact_type: str = ""


@value
class Index:
    """Images of one name for several platforms. image-spec, image-index.md."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    raw: bytes
    annotations: Mapping[str, str] = EMPTY


@value
class History:
    """How one layer, or one change without a layer, came to be."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@value
class Execution:
    """What a container of the image runs when nobody says otherwise. image-spec, config.md#properties."""

    user: str = ""
    exposed_ports: tuple[str, ...] = ()  # "80/tcp"
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    working_dir: str = ""
    labels: Mapping[str, str] = EMPTY
    stop_signal: str = ""


@value
class ImageConfig:
    """The config document: platform, execution defaults, layers' diff_ids and history. image-spec, config.md."""

    platform: Platform
    config: Execution
    diff_ids: tuple[Digest, ...]
    raw: bytes
    created: str = ""  # RFC 3339
    author: str = ""
    history: tuple[History, ...] = ()

    @property
    def document(self) -> Mapping[str, Any]:
        """Everything the document says, as parsed JSON."""
        parsed: Mapping[str, Any] = document.parse(self.raw, "the image config")
        return parsed


def parse_manifest(raw: bytes, media_type: str = "") -> Manifest | Index:
    """A manifest or index; ``media_type`` is what its sender called it, the document's own word counts more."""
    body = _object(document.parse(raw, "the manifest"), "the manifest")
    if body.get("schemaVersion") == 1 or media_type.startswith(_SCHEMA_1):
        raise Unsupported(
            "the image is in Docker's schema 1, which is obsolete and cannot be verified",
            hint="ask its publisher for a current image, or copy it with: skopeo copy --format v2s2",
        )
    kind = _string(body, "mediaType") or media_type.partition(";")[0].strip()
    if kind not in ACCEPTED:
        kind = OCI_INDEX if "manifests" in body else OCI_MANIFEST if "layers" in body else kind
    if kind in INDEX_TYPES:
        if "layers" in body or "config" in body:  # a document that is both could be read as either: CVE-2021-41190
            raise Invalid("the index has layers or a config like a manifest")
        return _index(body, kind, raw)
    if kind in MANIFEST_TYPES:
        if "manifests" in body:
            raise Invalid("the manifest has manifests like an index")
        return _manifest(body, kind, raw)
    raise Invalid(f"neither a manifest nor an index: media type {kind[:200]!r}")


def parse_config(raw: bytes) -> ImageConfig:
    """An image's config. Raises Invalid."""
    body = _object(document.parse(raw, "the image config"), "the image config")
    rootfs = _object(body.get("rootfs", {}), "rootfs")
    diff_ids = tuple(digests.parse(entry, "diff_id") for entry in _list(rootfs, "diff_ids", LAYERS_MAX))
    history = tuple(_history(_object(entry, "history")) for entry in _list(body, "history", _HISTORY_MAX))
    return ImageConfig(
        platform=parse_platform(body),
        config=_execution(_object(body.get("config") or {}, "config")),
        diff_ids=diff_ids,
        raw=raw,
        created=_string(body, "created"),
        author=_string(body, "author"),
        history=history,
    )


def parse_descriptor(body: object, what: str = "descriptor") -> Descriptor:
    """A descriptor from a parsed document."""
    entry = _object(body, what)
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_MAX:
        raise Invalid(f"the {what} has no plausible size: {str(size)[:50]}")
    platform = entry.get("platform")
    return Descriptor(
        media_type=_string(entry, "mediaType"),
        digest=digests.parse(entry.get("digest"), f"{what}'s digest"),
        size=size,
        platform=parse_platform(_object(platform, "platform")) if platform is not None else None,
        annotations=_strings(entry, "annotations"),
        urls=_texts(entry, "urls"),
        artifact_type=_string(entry, "artifactType"),
    )


def _index(body: Mapping[str, Any], kind: str, raw: bytes) -> Index:
    manifests = tuple(parse_descriptor(entry) for entry in _list(body, "manifests", MANIFESTS_MAX))
    return Index(kind, manifests, raw, _strings(body, "annotations"))


def _manifest(body: Mapping[str, Any], kind: str, raw: bytes) -> Manifest:
    layers = tuple(parse_descriptor(entry, "layer") for entry in _list(body, "layers", LAYERS_MAX))
    subject = body.get("subject")
    return Manifest(
        media_type=kind,
        config=parse_descriptor(body.get("config"), "config"),
        layers=layers,
        raw=raw,
        annotations=_strings(body, "annotations"),
        subject=parse_descriptor(subject, "subject") if subject is not None else None,
        artifact_type=_string(body, "artifactType"),
    )


def _history(entry: Mapping[str, Any]) -> History:
    return History(
        created=_string(entry, "created"),
        created_by=_string(entry, "created_by"),
        author=_string(entry, "author"),
        comment=_string(entry, "comment"),
        empty_layer=entry.get("empty_layer") is True,
    )


def _execution(body: Mapping[str, Any]) -> Execution:
    return Execution(
        user=_string(body, "User"),
        exposed_ports=_keys(body, "ExposedPorts"),
        env=_texts(body, "Env"),
        entrypoint=_texts(body, "Entrypoint"),
        cmd=_texts(body, "Cmd"),
        volumes=_keys(body, "Volumes"),
        working_dir=_string(body, "WorkingDir"),
        labels=_strings(body, "Labels"),
        stop_signal=_string(body, "StopSignal"),
    )


def _object(body: object, what: str) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Invalid(f"{what} is not a JSON object")
    return body


def _string(body: Mapping[str, Any], key: str) -> str:
    text = body.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Invalid(f"{key} is not a string")
    return text


def _list(body: Mapping[str, Any], key: str, most: int) -> list[Any]:
    entries = body.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise Invalid(f"{key} is not a list")
    if len(entries) > most:
        raise Invalid(f"{key} has {len(entries)} entries, more than the {most} that are allowed")
    return entries


def _texts(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    entries = _list(body, key, 65536)  # an argument vector or environment longer than that, execve refuses
    if not all(isinstance(entry, str) for entry in entries):
        raise Invalid(f"{key} is not a list of strings")
    return tuple(entries)


def _strings(body: Mapping[str, Any], key: str) -> Mapping[str, str]:
    entries = body.get(key)
    if entries is None:
        return EMPTY
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        raise Invalid(f"{key} is not a map of strings")
    return entries


def _keys(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The keys of what Go writes as a map of empty structs."""
    return tuple(_object(body.get(key) or {}, key))
