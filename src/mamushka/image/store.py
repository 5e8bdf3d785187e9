"""The content store: an OCI image layout on disk, so every tool that reads ``oci:`` directories reads it.

    oci-layout            what this directory is
    index.json            the names: one entry for each tag, digest reference, or image without a name
    blobs/sha256/<hex>    content, each file named by its own digest, complete from the moment it is there
    ingest/<alg>-<hex>    downloads under way: always a prefix of the blob, locked by who continues it
    lock, lease           flocked: who changes index.json; who relies on blobs that nothing names yet

Any process may die at any instant. A blob appears by rename once its digest is verified, index.json is
replaced by rename, and a partial download is a prefix that the next one continues. Nothing waits for the
disk: after a power failure a blob may be short, which ``has`` sees, and is then fetched again.

Names are whole references ("docker.io/library/alpine:latest"), kept in the annotations that skopeo
(``org.opencontainers.image.ref.name``) and containerd (``io.containerd.image.name``) look at.
"""

from __future__ import annotations

import os
import time
from _thread import get_ident

from mamushka import document
from mamushka.errors import Invalid, NotFound
from mamushka.linux.flock import Lock
from mamushka.spec.digest import Digest
from mamushka.spec.image import OCI_INDEX, Descriptor, Index, Manifest, parse_descriptor, parse_manifest
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
# index.json holds every name on this host; 64 MiB are some 150,000 of them.
_INDEX_MAX = 64 << 20
_PUT = "put-"


@value
class Entry:
    """A name and what it names; an empty name keeps an image that has none (any more)."""

    name: str
    descriptor: Descriptor


class ImageStore:
    """The store under ``root``; reading needs no lock, every change is atomic."""

    def __init__(self, root: str) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make what is missing of the layout; every writer calls it first."""
        if os.path.exists(f"{self.root}/oci-layout"):
            return
        for directory in ("blobs/sha256", "ingest"):
            os.makedirs(f"{self.root}/{directory}", mode=0o700, exist_ok=True)
        with Lock(f"{self.root}/lock"):
            if not os.path.exists(f"{self.root}/index.json"):
                self._replace("index.json.new", "index.json", _index_document(()))
            self._replace("oci-layout.new", "oci-layout", _LAYOUT)

    # blobs

    def path(self, digest: Digest) -> str:
        """Where the blob is or would be."""
        return f"{self.root}/{digest.path}"

    def has(self, digest: Digest, size: int = -1) -> bool:
        """Whether the blob is there, and of ``size`` bytes where that is given."""
        try:
            found = os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return False
        return size in (-1, found)

    def size(self, digest: Digest) -> int:
        """The blob's bytes on disk, 0 where it is missing."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return 0

    def read(self, digest: Digest, *, size_max: int = document.SIZE_MAX) -> bytes:
        """A small blob's content. NotFound, or Invalid where it is larger than ``size_max``."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"the blob {digest} is not in the store", hint="pull the image again") from error
        try:
            size = os.fstat(fd).st_size
            if size > size_max:
                raise Invalid(f"the document {digest} has {size} bytes, more than the {size_max} that are allowed")
            content = os.read(fd, size)
        finally:
            os.close(fd)
        return content

    def manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """The parsed document that a descriptor points to."""
        return parse_manifest(self.read(descriptor.digest), descriptor.media_type)

    def put(self, content: bytes, digest: Digest) -> None:
        """Keep a small blob. Raises Invalid unless it has this digest."""
        digest.verify(content, "the document")
        if not self.has(digest, len(content)):
            self.prepare()
            os.makedirs(os.path.dirname(self.path(digest)), mode=0o700, exist_ok=True)
            staging = self.staging_path()
            with open(staging, "xb", buffering=0) as file:
                file.write(content)
            os.rename(staging, self.path(digest))

    def staging_path(self) -> str:
        """A new file's path beside the blobs; what a killed writer leaves there, ``collect`` removes."""
        return f"{self.root}/ingest/{_PUT}{os.getpid()}-{get_ident()}-{time.monotonic_ns()}"

    def digests(self) -> Iterable[Digest]:
        """Every blob in the store."""
        for algorithm in _list(f"{self.root}/blobs"):
            for encoded in _list(f"{self.root}/blobs/{algorithm}"):
                yield Digest(f"{algorithm}:{encoded}")

    def collect(self, keep: set[Digest], *, partial: bool = False) -> int:
        """Remove every blob not in ``keep``, what killed writers left, and with ``partial`` also downloads that
        could be continued; the bytes freed. The caller holds the lease exclusively, so nobody is at work.
        """
        freed = 0
        for digest in list(self.digests()):
            if digest not in keep:
                freed += self.size(digest)
                os.unlink(self.path(digest))
        for name in _list(f"{self.root}/ingest"):
            if partial or name.startswith(_PUT):
                freed += os.stat(f"{self.root}/ingest/{name}").st_size
                os.unlink(f"{self.root}/ingest/{name}")
        return freed

    def lease(self, *, exclusive: bool = False) -> Lock:
        """Shared: blobs and layers stay while it is held, named or not. Exclusive, without waiting: nobody
        holds one, BlockingIOError otherwise."""
        self.prepare()
        return Lock(f"{self.root}/lease", shared=not exclusive, wait=not exclusive)

    # names

    def entries(self) -> tuple[Entry, ...]:
        """Every name, in no special order."""
        try:
            with open(f"{self.root}/index.json", "rb", buffering=0) as file:
                raw = file.read()
        except FileNotFoundError:
            return ()
        body = document.parse(raw, "the store's index.json", size_max=_INDEX_MAX)
        return tuple(_entry(item) for item in body.get("manifests", ()))

    def find(self, name: str) -> Descriptor | None:
        """What a whole reference names."""
        for entry in self.entries():
            if entry.name == name:
                return entry.descriptor
        return None

    def edit(self, change: Callable[[dict[str, Descriptor], dict[Digest, Descriptor]], None]) -> None:
        """Change the names: ``change`` is given what has a name, and what has none by digest, and alters both."""
        self.prepare()
        with Lock(f"{self.root}/lock"):
            entries = self.entries()
            named = {entry.name: entry.descriptor for entry in entries if entry.name}
            nameless = {entry.descriptor.digest: entry.descriptor for entry in entries if not entry.name}
            change(named, nameless)
            after = [Entry(name, descriptor) for name, descriptor in named.items()]
            after += [Entry("", descriptor) for descriptor in nameless.values()]
            self._replace("index.json.new", "index.json", _index_document(after))

    def _replace(self, staging: str, target: str, content: bytes) -> None:
        with open(f"{self.root}/{staging}", "wb", buffering=0) as file:
            file.write(content)
        os.rename(f"{self.root}/{staging}", f"{self.root}/{target}")


def _list(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _entry(item: Any) -> Entry:
    descriptor = parse_descriptor(item, "entry of index.json")
    name = descriptor.annotations.get(REF_NAME, "")
    return Entry(name, Descriptor(descriptor.media_type, descriptor.digest, descriptor.size))


def _index_document(entries: Iterable[Entry]) -> bytes:
    manifests = []
    for entry in entries:
        body = entry.descriptor.document()
        if entry.name:
            body["annotations"] = {REF_NAME: entry.name, CONTAINERD_NAME: entry.name}
        manifests.append(body)
    return document.dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
