"""Images out of archives and directories: OCI layouts, and what docker save has written through the years.

Everything in an archive is kept first, under the digest it really has; then the documents are read, and a
document that promises another digest than its content has is refused. What no image turns out to need is
removed with the next collection. Three generations are understood:

    index.json        an OCI layout; also what docker save writes since version 25
    manifest.json     docker save since 1.10, podman save, skopeo's docker-archive:
    repositories      before that: one directory for each layer, with its own json and its parent's id
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.engine import names as naming
from mamushka.engine.crew import Crew
from mamushka.errors import Invalid, NotFound
from mamushka.image.compression import GZIP, PLAIN, ZSTD, decompress, detect
from mamushka.image.ingest import adopt, read_blob
from mamushka.image.store import CONTAINERD_NAME, REF_NAME
from mamushka.linux.fd import open_in_root
from mamushka.spec import digest as digests
from mamushka.spec import platform as platforms
from mamushka.spec import reference as references
from mamushka.spec.image import (
    LAYERS_MAX,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_config,
    parse_descriptor,
    parse_manifest,
)
from mamushka.spec.tar import LINK, REGULAR, SYMLINK, Reader
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Protocol

    from mamushka.engine.catalogue import Catalogue
    from mamushka.image.store import ImageStore
    from mamushka.spec.digest import Digest
    from mamushka.spec.image import Manifest

    class Files(Protocol):
        """What an archive holds: a file's digest in the store by its name, None where there is no such file."""

        def find(self, name: str) -> Digest | None: ...


# An archive of every layer of 500 images has fewer members; each costs a file while it is looked at.
_MEMBERS_MAX = 200_000
_LINKS_MAX = 8
_SIDE_BY_SIDE = 2
_LAYER_TYPES = {GZIP: OCI_LAYER_GZIP, ZSTD: OCI_LAYER_ZSTD, PLAIN: OCI_LAYER}


def load(catalogue: Catalogue, archive: Iterable[bytes]) -> list[str]:
    """Names, or ids where there are none, of the images in a tar. The caller holds the store's lease."""
    # The archive's own size is not known in advance; its members are bounded by what the disk takes.
    stream = decompress(archive, size=1 << 40, what="the archive")
    return _images(catalogue, _Spooled(catalogue.store, stream))


def load_directory(catalogue: Catalogue, path: str) -> list[str]:
    """The same from a directory."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"cannot open {path}: {error.strerror}") from error
    try:
        return _images(catalogue, _Directory(catalogue.store, root))
    finally:
        os.close(root)


class _Spooled:
    """A tar's regular files, all of them in the store, and its links."""

    def __init__(self, store: ImageStore, stream: Iterable[bytes]) -> None:
        self._digests: dict[str, Digest] = {}
        self._links: dict[str, str] = {}
        reader = Reader(stream)
        for count, member in enumerate(reader):
            if count >= _MEMBERS_MAX:
                raise Invalid(f"the archive has more than {_MEMBERS_MAX} members")
            name = _normal(member.name.decode("utf-8", "surrogateescape"))
            link = member.link.decode("utf-8", "surrogateescape")
            if member.kind == REGULAR:
                self._digests[name], _ = adopt(store, reader.pieces())
            elif member.kind == SYMLINK:
                self._links[name] = _normal(link if link.startswith("/") else f"{os.path.dirname(name)}/{link}")
            elif member.kind == LINK:
                self._links[name] = _normal(link)

    def find(self, name: str) -> Digest | None:
        name = _normal(name)
        for _ in range(_LINKS_MAX):
            if name not in self._links:
                break
            name = self._links[name]
        return self._digests.get(name)


class _Directory:
    """A directory's files, kept in the store when they are asked for; links lead no further than its root."""

    def __init__(self, store: ImageStore, root: int) -> None:
        self._store, self._root = store, root

    def find(self, name: str) -> Digest | None:
        try:
            fd = open_in_root(self._root, os.fsencode(_normal(name)), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(fd, "rb", buffering=0) as file:
            return adopt(self._store, iter(lambda: file.read(1 << 20), b""))[0]


def _normal(name: str) -> str:
    """A member's name as a path from the archive's root, however it was written."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _images(catalogue: Catalogue, files: Files) -> list[str]:
    archive = _Archive(catalogue, files)
    for name, read in (
        ("index.json", archive.layout),
        ("manifest.json", archive.docker),
        ("repositories", archive.legacy),
    ):
        found = files.find(name)
        if found is not None:
            return read(document.parse(catalogue.store.read(found), name))
    raise Invalid(
        "this is not an archive of images: it has neither index.json nor manifest.json nor repositories",
        hint="archives are written by save; a root filesystem alone is none",
    )


class _Archive:
    def __init__(self, catalogue: Catalogue, files: Files) -> None:
        self._catalogue, self._store, self._files = catalogue, catalogue.store, files

    def layout(self, body: Any) -> list[str]:
        """An OCI layout's index.json."""
        loaded = []
        for entry in _records(body.get("manifests") if isinstance(body, dict) else None, "index.json"):
            descriptor = parse_descriptor(entry)
            annotations = descriptor.annotations
            top = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
            manifest = self._chosen(top)
            self._unpack(manifest)
            ref_name = annotations.get(REF_NAME, "")
            name = annotations.get(CONTAINERD_NAME) or (ref_name if ":" in ref_name or "/" in ref_name else "")
            loaded.append(
                self._name(
                    replace(top, media_type=top.media_type or manifest.media_type), manifest, [name] if name else []
                )
            )
        return [name for names in loaded for name in names]

    def _chosen(self, top: Descriptor, depth: int = 0) -> Manifest:
        """The manifest of an entry, or the one for this machine below it, with its config and layers kept."""
        parsed = parse_manifest(self._store.read(self._blob(top)), top.media_type)
        if not isinstance(parsed, Index):
            for blob in (parsed.config, *parsed.layers):
                self._blob(blob)
            return parsed
        if depth > 2:
            raise Invalid("the archive's index is nested too deep")
        here = [entry for entry in parsed.manifests if self._files.find(entry.digest.path)]
        return self._chosen(platforms.select(here, platforms.host()), depth + 1)

    def _blob(self, blob: Descriptor) -> Digest:
        """Check that the archive's file for a blob is what it is called."""
        if self._store.has(blob.digest, blob.size):
            return blob.digest  # every file of a tar is, under the digest that it really has
        found = self._files.find(blob.digest.path)
        if found is None:
            raise Invalid(f"the archive lacks {blob.digest.path}")
        if found != blob.digest:
            raise Invalid(f"the archive's {blob.digest.path} has the digest {found}")
        if not self._store.has(blob.digest, blob.size):
            raise Invalid(f"the archive's {blob.digest.path} does not have {blob.size} bytes")
        return blob.digest

    def docker(self, body: Any) -> list[str]:
        """manifest.json: a list of images, each with its config, layers and names."""
        loaded = []
        for image in _records(body, "manifest.json"):
            config = self._file(image.get("Config"))
            layers = [self._file(path) for path in _texts(image.get("Layers"), "Layers")]
            loaded += self._made(config, layers, _texts(image.get("RepoTags") or [], "RepoTags"))
        return loaded

    def legacy(self, body: Any) -> list[str]:
        """repositories: name → tag → id of the topmost layer, whose json holds the config."""
        loaded = []
        for name, tags in body.items() if isinstance(body, dict) else ():
            for tag, top in tags.items() if isinstance(tags, dict) else ():
                chain = self._chain(top)
                layers = [self._file(f"{id}/layer.tar") for id, _ in chain]
                config = self._legacy_config([record for _, record in chain], layers)
                loaded += self._made(config, layers, [f"{name}:{tag}"])
        return loaded

    def _chain(self, top: object) -> list[tuple[str, dict[str, Any]]]:
        """From the lowest layer to ``top``, by their parents."""
        chain: list[tuple[str, dict[str, Any]]] = []
        while top:
            if not isinstance(top, str) or len(chain) == LAYERS_MAX:
                raise Invalid(f"the chain of layers to {chain[0][0] if chain else top!r} has no end")
            record = document.parse(self._store.read(self._file(f"{top}/json")), f"{top}/json")
            if not isinstance(record, dict):
                raise Invalid(f"{top}/json is not an object")
            chain.append((top, record))
            top = record.get("parent")
        return chain[::-1]

    def _legacy_config(self, records: list[dict[str, Any]], layers: list[Digest]) -> Digest:
        top = records[-1]
        kept: dict[str, object] = {
            key: top[key] for key in ("architecture", "os", "created", "config", "author") if key in top
        }
        history = [{key: record[key] for key in ("created", "author") if key in record} for record in records]
        diff_ids = [self._diff_id(layer) for layer in layers]
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        made: dict[str, object] = {"os": "linux", **kept, "rootfs": rootfs, "history": history}
        return self._keep(document.dump(made))

    def _diff_id(self, layer: Digest) -> str:
        hasher = layer.hasher()
        for piece in decompress(read_blob(self._store, layer), size=self._store.size(layer)):
            hasher.update(piece)
        return f"{layer.algorithm}:{hasher.hexdigest()}"

    def _made(self, config: Digest, layers: list[Digest], names: list[str]) -> list[str]:
        """An image that came without a manifest gets one."""
        descriptors = tuple(Descriptor(self._layer_type(layer), layer, self._store.size(layer)) for layer in layers)
        about = Descriptor(OCI_CONFIG, config, self._store.size(config))
        raw = document.dump(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": about.document(),
                "layers": [layer.document() for layer in descriptors],
            }
        )
        manifest = parse_manifest(raw)
        assert not isinstance(manifest, Index)
        self._unpack(manifest)
        return self._name(Descriptor(OCI_MANIFEST, self._keep(raw), len(raw)), manifest, names)

    def _layer_type(self, layer: Digest) -> str:
        with open(self._store.path(layer), "rb", buffering=0) as file:
            return _LAYER_TYPES[detect(file.read(8))]

    def _keep(self, raw: bytes) -> Digest:
        digest = digests.sha256(raw)
        self._store.put(raw, digest)
        return digest

    def _file(self, name: object) -> Digest:
        found = self._files.find(name) if isinstance(name, str) else None
        if found is None:
            raise Invalid(f"the archive lacks {str(name)[:200]!r}")
        return found

    def _unpack(self, manifest: Manifest) -> None:
        config = parse_config(self._store.read(manifest.config.digest))
        if len(config.diff_ids) != len(manifest.layers) or not config.diff_ids:
            raise Invalid(
                f"an image in the archive has {len(manifest.layers)} layers, its config {len(config.diff_ids)}"
            )

        def apply(job: tuple[Descriptor, Digest]) -> None:
            layer, diff_id = job
            plain = decompress(read_blob(self._store, layer.digest), size=layer.size)
            self._catalogue.layers.apply(diff_id, plain)

        jobs = {diff_id: (layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)}
        for _ in Crew(_SIDE_BY_SIDE).work(list(jobs.values()), apply):
            pass
        self._catalogue.layers.adopt(config.diff_ids)

    def _name(self, top: Descriptor, manifest: Manifest, names: list[str]) -> list[str]:
        whole = {str(references.parse(name).with_default_tag()): top for name in names}
        naming.assign(self._store, whole, nameless=() if whole else (top,))
        return [references.parse(name).familiar for name in whole] or [str(manifest.config.digest)]


def _records(body: Any, what: str) -> Iterator[dict[str, Any]]:
    if not isinstance(body, list) or not body or not all(isinstance(entry, dict) for entry in body):
        raise Invalid(f"{what} lists no images")
    return iter(body)


def _texts(body: Any, what: str) -> list[str]:
    if not isinstance(body, list) or len(body) > 10_000 or not all(isinstance(entry, str) for entry in body):
        raise Invalid(f"{what} in manifest.json is not a list of names")
    return body
