"""Blobs into a registry: not at all where they are there, by mount from a neighbour, in one piece, or in parts.

A large blob goes in parts, so that a connection that breaks costs one part: the registry is asked how far it
came, and the upload goes on from there. distribution-spec, "Pushing blobs".
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from mamushka import trace
from mamushka.errors import Invalid, MamushkaError, NotFound, Unavailable
from mamushka.image.http import join
from mamushka.spec import distribution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mamushka.image.http import Response
    from mamushka.image.registry import Registry
    from mamushka.image.store import ImageStore
    from mamushka.spec.digest import Digest

# Up to this size one request does it.
WHOLE = 32 << 20
PART = 32 << 20
# A registry that wants parts larger than this is asking for our memory or patience: no known one does.
_PART_MAX = 1 << 30
_PIECE = 512 << 10
_BODY = "application/octet-stream"

PRESENT, MOUNTED, UPLOADED = "present", "mounted", "uploaded"


class Upload:
    """Uploads blobs of a store to one repository; ``progress`` hears how many bytes of a blob are there."""

    def __init__(self, registry: Registry, repository: str, store: ImageStore) -> None:
        self._registry, self._repository, self._store = registry, repository, store

    def blob(
        self, digest: Digest, *, mount_from: str = "", progress: Callable[[int], None] = lambda _sent: None
    ) -> str:
        """Bring one blob there: PRESENT, MOUNTED or UPLOADED says how it came."""
        if not self._store.has(digest):
            raise NotFound(f"the blob {digest} is not in the store", hint="pull the image again before pushing it")
        if self._registry.has_blob(self._repository, digest):
            return PRESENT
        size = self._store.size(digest)
        patience = self._registry.patience
        for attempt in range(patience.attempts):
            try:
                with self._begin(digest, mount_from) as answer:
                    if answer.status == 201:
                        return MOUNTED
                    location, least = self._location(answer), _least(answer)
                if size <= WHOLE:
                    self._finish(location, digest, 0, size, progress)
                else:
                    self._parts(location, digest, size, max(PART, least), progress)
                return UPLOADED
            except Unavailable as error:
                if attempt + 1 == patience.attempts:
                    raise
                trace.event("upload.retry", digest=digest, reason=str(error))
                patience.wait(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _begin(self, digest: Digest, mount_from: str) -> Response:
        path = f"{self._repository}/blobs/uploads/"
        what = f"cannot upload {digest} to {self._registry.host}/{self._repository}"
        if mount_from and mount_from != self._repository:
            query = f"?mount={quote(digest)}&from={quote(mount_from)}"
            try:
                return self._exchange("POST", path + query, what, body=b"", mount_from=mount_from)
            except Unavailable:
                raise
            except MamushkaError as error:  # not ours to read over there, or mounts unknown: upload it
                trace.event("upload.no_mount", digest=digest, source=mount_from, reason=str(error))
        return self._exchange("POST", path, what, body=b"")

    def _parts(self, location: str, digest: Digest, size: int, part: int, progress: Callable[[int], None]) -> None:
        sent = failures = 0
        while size - sent > part:
            try:
                location, sent = self._part(location, digest, sent, part)
                failures = 0
            except Unavailable:
                failures += 1
                if failures == self._registry.patience.attempts:
                    raise
                self._registry.patience.wait(failures)
                location, sent = self._where(location, digest)
            if sent > size:
                raise Invalid(f"{self._registry.host} has {sent} bytes of {digest}, which has {size}")
            progress(sent)
        self._finish(location, digest, sent, size, progress)

    def _part(self, location: str, digest: Digest, sent: int, part: int) -> tuple[str, int]:
        headers = {
            "Content-Type": _BODY,
            "Content-Length": str(part),
            "Content-Range": f"{sent}-{sent + part - 1}",
        }
        body = self._read(digest, sent, part)
        with self._exchange(
            "PATCH", location, f"cannot upload a part of {digest}", headers=headers, body=body
        ) as answer:
            said = answer.header("Range")
            return self._location(answer), distribution.upload_offset(said) if said else sent + part

    def _where(self, location: str, digest: Digest) -> tuple[str, int]:
        """How far the registry says an interrupted upload came."""
        with self._exchange("GET", location, f"cannot continue the upload of {digest}") as answer:
            return self._location(answer, location), distribution.upload_offset(answer.header("Range"))

    def _finish(self, location: str, digest: Digest, sent: int, size: int, progress: Callable[[int], None]) -> None:
        """The last part, and the digest under which the whole shall be known."""
        join = "&" if urlsplit(location).query else "?"
        headers = {"Content-Type": _BODY, "Content-Length": str(size - sent)}
        if sent:
            headers["Content-Range"] = f"{sent}-{size - 1}"
        body = self._read(digest, sent, size - sent, progress)
        url = f"{location}{join}digest={quote(digest)}"
        with self._exchange("PUT", url, f"cannot finish the upload of {digest}", headers=headers, body=body):
            progress(size)

    def _read(
        self, digest: Digest, offset: int, length: int, progress: Callable[[int], None] = lambda _sent: None
    ) -> Iterator[bytes]:
        with open(self._store.path(digest), "rb", buffering=0) as file:
            file.seek(offset)
            while length and (piece := file.read(min(_PIECE, length))):
                length -= len(piece)
                offset += len(piece)
                yield piece
                progress(offset)

    def _exchange(self, method: str, path: str, what: str, **more: object) -> Response:
        return self._registry.exchange(method, path, what, self._repository, push=True, **more)  # type: ignore[arg-type]

    def _location(self, answer: Response, otherwise: str = "") -> str:
        location = answer.header("Location") or otherwise
        if not location:
            raise Invalid(f"{self._registry.host} does not say where to upload to")
        return join(answer.url, location)


def _least(answer: Response) -> int:
    """The smallest part that the registry takes."""
    least = answer.header("OCI-Chunk-Min-Length")
    if least.isdecimal() and least.isascii() and len(least) < 12 and int(least) <= _PART_MAX:
        return int(least)
    return 0
