"""Pushing: blobs first, several side by side, then the manifests that name them, the tag's last."""

from __future__ import annotations

from mamushka.engine.crew import Crew
from mamushka.engine.summary import Progress
from mamushka.image.upload import MOUNTED, PRESENT, UPLOADED, Upload
from mamushka.spec import reference as references
from mamushka.spec.image import Index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.engine.catalogue import Catalogue
    from mamushka.image.registry import Registry
    from mamushka.spec.digest import Digest
    from mamushka.spec.image import Descriptor, Manifest
    from mamushka.spec.reference import Reference

_SIDE_BY_SIDE = 3
_SAID = {PRESENT: "Layer already exists", UPLOADED: "Pushed"}


class Push:
    """One tag to one registry; iterate ``run``."""

    def __init__(self, catalogue: Catalogue, registry: Registry, reference: Reference) -> None:
        self._catalogue, self._store = catalogue, catalogue.store
        self._registry, self._reference = registry, reference
        self._upload = Upload(registry, reference.repository, catalogue.store)

    def run(self, top: Descriptor) -> Iterator[Progress]:
        """Upload what ``top`` leads to and give it the reference's tag. The caller holds the store's lease."""
        yield Progress(f"The push refers to repository [{self._reference.name}]")
        top, manifests = self._choose(top)
        neighbours = self._neighbours()
        blobs = {blob.digest: blob for _, manifest in manifests for blob in (*manifest.layers, manifest.config)}
        yield from self._blobs(list(blobs.values()), neighbours)
        for descriptor, manifest in manifests:
            if descriptor.digest != top.digest:
                self._put(descriptor.digest, descriptor, manifest.raw)
        self._put(self._reference.tag, top, self._store.read(top.digest))
        yield Progress(f"{self._reference.tag}: digest: {top.digest} size: {top.size}")

    def _choose(self, top: Descriptor) -> tuple[Descriptor, list[tuple[Descriptor, Manifest]]]:
        """The whole index where everything it names is here, the one image that is here otherwise."""
        manifests = list(self._catalogue.manifests(top))
        if top.is_index:
            index = self._store.manifest(top)
            assert isinstance(index, Index)
            blobs = [blob for _, manifest in manifests for blob in (*manifest.layers, manifest.config)]
            whole = len(manifests) == len(index.manifests) and all(self._store.has(b.digest, b.size) for b in blobs)
            if not whole:
                present = self._catalogue.choose(top, "", self._reference.familiar)
                return present.descriptor, [(present.descriptor, present.manifest)]
        return top, manifests

    def _neighbours(self) -> dict[Digest, str]:
        """In which other repositories of the same registry a blob should be, since its image came from there."""
        found: dict[Digest, str] = {}
        for entry in self._store.entries():
            name = references.parse(entry.name) if "@" in entry.name else None
            if name and name.registry == self._reference.registry and name.repository != self._reference.repository:
                for _, manifest in self._catalogue.manifests(entry.descriptor):
                    for blob in (*manifest.layers, manifest.config):
                        found.setdefault(blob.digest, name.repository)
        return found

    def _blobs(self, blobs: list[Descriptor], neighbours: dict[Digest, str]) -> Iterator[Progress]:
        for blob in blobs:
            yield Progress("Preparing", blob.digest.short, total=blob.size)
        crew = Crew(_SIDE_BY_SIDE)
        yield from crew.work(blobs, lambda blob: self._blob(blob, neighbours.get(blob.digest, ""), crew))

    def _blob(self, blob: Descriptor, neighbour: str, crew: Crew) -> None:
        def progress(sent: int) -> None:
            crew.tell(Progress("Pushing", blob.digest.short, sent, blob.size))

        how = self._upload.blob(blob.digest, mount_from=neighbour, progress=progress)
        said = f"Mounted from {neighbour}" if how == MOUNTED else _SAID[how]
        crew.tell(Progress(said, blob.digest.short, blob.size, blob.size))

    def _put(self, selector: str, descriptor: Descriptor, raw: bytes) -> None:
        self._registry.put_manifest(self._reference.repository, selector, raw, descriptor.media_type)
