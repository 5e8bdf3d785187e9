"""Pulling: every layer is downloaded, verified, stored and unpacked in one pass, several side by side.

For each layer two threads work: one receives, hashes and stores what comes, the other decompresses, hashes
and unpacks it; nearly all of that happens in C without the GIL. The order of locks is the layer's, then the
blob's, in every process, so several pulls of one image wait for each other and never in a circle: receiving
begins only when unpacking asks for its first piece.

The name is given last. A pull that is killed leaves verified blobs, whole layers and the beginning of blobs,
all of which the next one uses.
"""

from __future__ import annotations

from queue import Full, Queue
from threading import Event, Thread

from mamushka.document import SIZE_MAX
from mamushka.engine.crew import GRACE, Crew
from mamushka.engine.summary import Progress
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.image.compression import decompress
from mamushka.image.ingest import complete, ingest
from mamushka.spec import platform as platforms
from mamushka.spec.image import Index, parse_config, parse_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mamushka.engine.catalogue import Catalogue
    from mamushka.image.remote import Source
    from mamushka.spec.digest import Digest
    from mamushka.spec.image import Descriptor, ImageConfig, Manifest
    from mamushka.spec.platform import Platform
    from mamushka.spec.reference import Reference

    Pieces = Generator[bytes, None, None]

# Layers at the same time; more fill neither the link nor two processors any better.
_SIDE_BY_SIDE = 3
# Pieces that may wait between receiving and unpacking; with image/http.py's PIECE 8 MiB for each layer.
_WAITING = 16
# Below this a layer is not worth a second thread.
_SMALL = 1 << 20
_DEPTH_MAX = 3


class Pull:
    """One reference from one source into the store and the layers; iterate ``run``."""

    def __init__(self, catalogue: Catalogue, source: Source, reference: Reference, platform: str) -> None:
        self._store, self._layers = catalogue.store, catalogue.layers
        self._catalogue, self._source, self._reference = catalogue, source, reference
        self._platform = platform
        self._crew = Crew(_SIDE_BY_SIDE)
        self._downloaded: set[Digest] = set()
        self.top: Descriptor | None = None  # what the reference turned out to name
        self.id: Digest | None = None
        self.fetched = False  # whether anything had to be

    def run(self) -> Iterator[Progress]:
        """Do it. The caller holds the store's lease until the image has its name."""
        yield Progress(f"{self._reference.selector}: Pulling from {self._reference.repository}")
        if not self._is_here():
            self.fetched = True
            manifest, config = self._documents()
            if not self._platform and _foreign(config.platform):
                yield Progress(
                    f"WARNING: The requested image's platform ({config.platform}) does not match the detected host "
                    f"platform ({platforms.host()}) and no specific platform was requested"
                )
            yield from self._fetch_layers(manifest, config)
        assert self.top is not None
        yield Progress(f"Digest: {self.top.digest}")

    def _is_here(self) -> bool:
        """Whether what the registry has now is what is here, whole."""
        known = self._store.find(str(self._reference))
        if known is None:
            return False
        top = known if self._reference.digest else self._source.resolve(self._reference.selector)
        if top.digest != known.digest:
            return False
        try:
            present = self._catalogue.choose(known, self._platform or str(platforms.host()), str(self._reference))
        except NotFound:
            return False
        if not all(self._store.has(layer.digest, layer.size) for layer in present.manifest.layers):
            return False
        self.top, self.id = known, present.id
        return True

    def _documents(self) -> tuple[Manifest, ImageConfig]:
        """The index, if there is one, the platform's manifest and its config, all stored as they came."""
        self.top, raw = self._source.manifest(self._reference.selector)
        found = parse_manifest(raw, self.top.media_type)
        self._store.put(raw, self.top.digest)
        single = not isinstance(found, Index)
        for _ in range(_DEPTH_MAX):
            if not isinstance(found, Index):
                break
            wanted = platforms.parse(self._platform) if self._platform else platforms.host()
            chosen = platforms.select(found.manifests, wanted, strict=bool(self._platform))
            _, raw = self._source.manifest(chosen.digest)
            found = parse_manifest(raw, chosen.media_type)
            self._store.put(raw, chosen.digest)
        if isinstance(found, Index):
            raise Invalid(f"{self._reference.familiar} is nested deeper than {_DEPTH_MAX} indexes")
        if any(layer.media_type.endswith("+encrypted") for layer in found.layers):
            raise Unsupported(
                f"the layers of {self._reference.familiar} are encrypted, and there is no key for them here"
            )
        if found.config.size > SIZE_MAX:
            raise Invalid(f"the config of {self._reference.familiar} has {found.config.size} bytes, too many for one")
        self._blob(found.config)
        config = parse_config(self._store.read(found.config.digest))
        if single and self._platform and not platforms.same(config.platform, platforms.parse(self._platform)):
            raise NotFound(f"{self._reference.familiar} exists for {config.platform} only, not for {self._platform}")
        if len(config.diff_ids) != len(found.layers) or not found.layers:
            raise Invalid(
                f"{self._reference.familiar} is not an image that can run: its manifest has {len(found.layers)} "
                f"layers, its config {len(config.diff_ids)}"
            )
        self.id = found.config.digest
        return found, config

    def _blob(self, descriptor: Descriptor) -> None:
        complete(self._store, descriptor.digest, descriptor.size, lambda offset: self._source.blob(descriptor, offset))

    # layers

    def _fetch_layers(self, manifest: Manifest, config: ImageConfig) -> Iterator[Progress]:
        """Run the layers in threads, the largest first, and tell what moves until all are there."""
        pairs = zip(manifest.layers, config.diff_ids, strict=True)
        jobs = list({(layer.digest, diff_id): (layer, diff_id) for layer, diff_id in pairs}.values())
        for layer, _ in jobs:
            yield Progress("Pulling fs layer", layer.digest.short, total=layer.size)
        jobs.sort(key=lambda job: job[0].size, reverse=True)
        yield from self._crew.work(jobs, lambda job: self._layer(*job))
        self._layers.adopt(config.diff_ids)

    def _layer(self, layer: Descriptor, diff_id: Digest) -> None:
        if self._layers.has(diff_id) and self._store.has(layer.digest, layer.size):
            self._tell("Already exists", layer)
            return
        pieces = self._downloading(layer)
        if layer.size > _SMALL:
            pieces = self._extracting(layer, _ahead(pieces))
        try:
            self._layers.apply(diff_id, decompress(pieces, size=layer.size, what=f"the layer {layer.digest.short}"))
        except Invalid as error:
            name = f"{self._reference.familiar}: layer {layer.digest.short}"
            raise Invalid(f"cannot pull {name}: {error}", hint=error.hint) from error
        finally:
            pieces.close()  # gives up the blob's lock now, and not when the error has been forgotten
        self._blob(layer)  # where another process has unpacked it, or another image had it
        self._tell("Pull complete", layer, layer.size)

    def _downloading(self, layer: Descriptor) -> Pieces:
        current = 0
        received = ingest(self._store, layer.digest, layer.size, lambda offset: self._source.blob(layer, offset))
        try:
            for piece in received:
                current += len(piece)
                self._tell("Downloading", layer, current)
                yield piece
        finally:
            received.close()
        self._downloaded.add(layer.digest)
        self._tell("Download complete", layer, layer.size)

    def _extracting(self, layer: Descriptor, pieces: Pieces) -> Pieces:
        current = 0
        try:
            for piece in pieces:
                current += len(piece)
                if layer.digest in self._downloaded:
                    self._tell("Extracting", layer, current)
                yield piece
        finally:
            pieces.close()

    def _tell(self, status: str, layer: Descriptor, current: int = 0) -> None:
        self._crew.tell(Progress(status, layer.digest.short, current, layer.size))


def _ahead(pieces: Pieces) -> Pieces:
    """The same pieces, made by a thread that runs ahead as far as the queue is long."""
    queue: Queue[bytes | BaseException | None] = Queue(_WAITING)
    gone = Event()

    def put(item: bytes | BaseException | None) -> None:
        while not gone.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return

    def receive() -> None:
        try:
            for piece in pieces:
                if gone.is_set():
                    return
                put(piece)
            put(None)
        except BaseException as error:
            put(error)
        finally:
            pieces.close()

    thread = Thread(target=receive, daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        thread.join(GRACE)


def _foreign(platform: Platform) -> bool:
    """Whether this machine runs nothing of the kind; an image that does not say its platform is not foreign."""
    own = {(item.os, item.architecture) for item in platforms.compatible(platforms.host())}
    return bool(platform.architecture) and (platform.os, platform.architecture) not in own
