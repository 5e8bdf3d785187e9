"""Writing images into archives: one tar that is an OCI layout and, for Docker's tools, a docker-archive too.

    oci-layout, index.json          the OCI image layout; entries carry their names
    blobs/sha256/…                  manifests, configs and layers, each once, as they came from the registry
    manifest.json, repositories     what docker load, podman load and skopeo's docker-archive: look at

Layers stay compressed: all readers of docker-archives look at the first bytes of a layer, not at its name.
Everything is dated at the beginning of time, so the same images give the same archive.
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.errors import Invalid, NotFound
from mamushka.image.ingest import read_blob
from mamushka.image.store import CONTAINERD_NAME, REF_NAME
from mamushka.spec import reference as references
from mamushka.spec.image import Descriptor
from mamushka.spec.tar import DIRECTORY, Member
from mamushka.spec.tar_write import END, header, padding
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from mamushka.engine.catalogue import Catalogue, Present
    from mamushka.image.store import ImageStore
    from mamushka.spec.digest import Digest

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@value
class Chosen:
    """An image to save, under the whole name it was asked by; empty when it was asked by id."""

    name: str
    present: Present


def choose(catalogue: Catalogue, names: Sequence[str]) -> list[Chosen]:
    """The images of these names; a repository's name without a tag means ``latest``, as everywhere."""
    chosen = []
    for name in names:
        present = catalogue.find(name)
        by_name = catalogue.store.find(_whole(name)) == present.top
        chosen.append(Chosen(_whole(name) if by_name else "", present))
        for blob in _blobs(present):
            if not catalogue.store.has(blob.digest, blob.size):
                raise NotFound(f"image {name} lacks the blob {blob.digest}", hint="pull it again")
    return chosen


def save(catalogue: Catalogue, names: Sequence[str], *, docker: bool) -> Iterator[bytes]:
    """The tar stream; with ``docker`` also what Docker's tools look at."""
    chosen = choose(catalogue, names)
    blobs = {blob.digest: blob for one in chosen for blob in _blobs(one.present)}
    for directory in ("blobs", *sorted({f"blobs/{digest.algorithm}" for digest in blobs})):
        yield header(Member(directory.encode(), DIRECTORY, 0o755))
    for digest in sorted(blobs):
        yield from _blob(catalogue.store, digest)
    yield from _file("index.json", document.dump({"schemaVersion": 2, "manifests": _entries(chosen)}))
    if docker:
        yield from _file("manifest.json", _manifest(chosen))
        yield from _file("repositories", _repositories(chosen))
    yield from _file("oci-layout", _LAYOUT)
    yield END


def save_directory(catalogue: Catalogue, names: Sequence[str], path: str) -> None:
    """Add the images to an OCI layout, made where it is missing; entries of the same name are replaced."""
    chosen = choose(catalogue, names)
    for digest in {blob.digest for one in chosen for blob in _blobs(one.present)}:
        os.makedirs(f"{path}/blobs/{digest.algorithm}", exist_ok=True)
        if not os.path.exists(f"{path}/{digest.path}"):
            _replace(f"{path}/{digest.path}", read_blob(catalogue.store, digest))
    entries = _entries(chosen)
    ours = {_ref_name(entry) for entry in entries} - {""}
    before = [entry for entry in _present_entries(path) if _ref_name(entry) not in ours and entry not in entries]
    _replace(f"{path}/index.json", [document.dump({"schemaVersion": 2, "manifests": [*before, *entries]})])
    _replace(f"{path}/oci-layout", [_LAYOUT])


def _present_entries(path: str) -> list[Mapping[str, Any]]:
    try:
        with open(f"{path}/index.json", "rb") as file:
            body = document.parse(file.read(), f"{path}/index.json", size_max=64 << 20)
    except FileNotFoundError:
        return []
    manifests = body.get("manifests") if isinstance(body, dict) else None
    if not isinstance(manifests, list) or not all(isinstance(entry, dict) for entry in manifests):
        raise Invalid(f"{path}/index.json is not the index of an OCI layout")
    return manifests


def _ref_name(entry: Mapping[str, Any]) -> str:
    annotations = entry.get("annotations")
    return str(annotations.get(REF_NAME, "")) if isinstance(annotations, dict) else ""


def _replace(path: str, pieces: Iterable[bytes]) -> None:
    staging = f"{path}.{os.getpid()}.new"
    try:
        with open(staging, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
        os.rename(staging, path)
    except BaseException:
        os.unlink(staging)
        raise


def _whole(name: str) -> str:
    """The tag to write into the archive; an id or a digest gives the image no name there."""
    try:
        reference = references.parse(name)
    except Invalid:
        return ""
    return "" if reference.digest else str(reference.with_default_tag())


def _blobs(present: Present) -> list[Descriptor]:
    return [present.descriptor, present.manifest.config, *present.manifest.layers]


def _file(name: str, content: bytes) -> Iterator[bytes]:
    yield header(Member(name.encode(), size=len(content)))
    yield content + padding(len(content))


def _blob(store: ImageStore, digest: Digest) -> Iterator[bytes]:
    size = store.size(digest)
    yield header(Member(digest.path.encode(), size=size))
    yield from read_blob(store, digest)
    yield padding(size)


def _entries(chosen: Sequence[Chosen]) -> list[dict[str, object]]:
    """As containerd and Docker write them: the whole name in one annotation, the tag in the other; the whole
    name in both when several images have the same tag."""
    tags = [references.parse(one.name).tag for one in chosen if one.name]
    entries = []
    for one in chosen:
        descriptor = one.present.descriptor
        entry = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size).document()
        if one.name:
            tag = references.parse(one.name).tag
            entry["annotations"] = {CONTAINERD_NAME: one.name, REF_NAME: tag if tags.count(tag) == 1 else one.name}
        entries.append(entry)
    return entries


def _manifest(chosen: Sequence[Chosen]) -> bytes:
    images: dict[Digest, dict[str, object]] = {}
    for one in chosen:
        image = images.setdefault(
            one.present.id,
            {
                "Config": one.present.id.path,
                "RepoTags": [],
                "Layers": [layer.digest.path for layer in one.present.manifest.layers],
            },
        )
        if one.name:
            image["RepoTags"] = [*image["RepoTags"], references.parse(one.name).familiar]  # type: ignore[misc]
    return document.dump(list(images.values()))


def _repositories(chosen: Sequence[Chosen]) -> bytes:
    """Docker before 1.10 looked here; its tag points to the topmost layer."""
    repositories: dict[str, dict[str, str]] = {}
    for one in chosen:
        if one.name:
            reference = references.parse(one.name)
            top = one.present.manifest.layers[-1].digest.encoded
            repositories.setdefault(reference.familiar_name, {})[reference.tag] = top
    return document.dump(repositories)
