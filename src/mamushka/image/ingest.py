"""One blob on its way into the store: verified while it streams, continued where somebody else stopped.

The partial file is named by the digest and locked by whoever continues it, so of several processes that
want one blob a single one downloads and the others wait; when it dies, the kernel drops its lock and the
next goes on from the last byte that was written. The file is always a prefix of the blob: a mismatch at the
end means that a byte somewhere is wrong, and then nothing of it is kept.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid
from mamushka.linux.flock import Lock
from mamushka.spec.digest import Digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from mamushka.image.store import ImageStore

# Reading back what is on disk: large enough for hashing and decompressing to run without the GIL for long.
_PIECE = 1 << 20


def read_blob(store: ImageStore, digest: Digest, *, piece: int = _PIECE) -> Iterator[bytes]:
    """A blob of the store, piece by piece."""
    with open(store.path(digest), "rb", buffering=0) as file:
        while chunk := file.read(piece):
            yield chunk


def ingest(
    store: ImageStore,
    digest: Digest,
    size: int,
    fetch: Callable[[int], Iterable[bytes]],
) -> Generator[bytes, None, None]:
    """Stream a blob while it enters the store; from the store itself where it is there already.

    ``fetch(offset)`` gives the bytes from ``offset`` on. Raises Invalid when the whole is not what ``digest``
    and ``size`` (-1: unknown) say; whoever consumes the pieces must not rely on them before the end, and closes
    the generator when it gives up earlier: until then the blob is locked.
    """
    store.prepare()
    lock = _take(store, digest, size)
    if lock is None:
        yield from read_blob(store, digest)
        return
    with lock:
        yield from _stream(store, digest, size, fetch, lock.fd)


def complete(store: ImageStore, digest: Digest, size: int, fetch: Callable[[int], Iterable[bytes]]) -> None:
    """The same for its effect alone: afterwards the store has the blob."""
    if not store.has(digest, size):
        for _ in ingest(store, digest, size, fetch):
            pass


def adopt(store: ImageStore, pieces: Iterable[bytes | memoryview]) -> tuple[Digest, int]:
    """Keep content whose digest nobody said, under the one it has; its size besides."""
    store.prepare()
    hasher, size = Digest("sha256:").hasher(), 0
    path = store.staging_path()
    with open(path, "xb", buffering=0) as file:
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
            _write(file.fileno(), piece, size - len(piece))
    digest = Digest(f"sha256:{hasher.hexdigest()}")
    os.rename(path, store.path(digest))
    return digest, size


def partial_path(store: ImageStore, digest: Digest) -> str:
    """Where the part that has come so far lies."""
    return f"{store.root}/ingest/{digest.algorithm}-{digest.encoded}"


def _take(store: ImageStore, digest: Digest, size: int) -> Lock | None:
    """The lock of the partial file; None when the blob has been completed meanwhile."""
    path = partial_path(store, digest)
    while not store.has(digest, size):
        lock = Lock(path)
        if lock.current(path) and not store.has(digest, size):
            return lock
        lock.close()  # whoever had it before finished the blob, or threw it away
    return None


def _stream(
    store: ImageStore, digest: Digest, size: int, fetch: Callable[[int], Iterable[bytes]], fd: int
) -> Iterator[bytes]:
    hasher = digest.hasher()
    offset = 0
    while chunk := os.pread(fd, _PIECE, offset):
        hasher.update(chunk)
        offset += len(chunk)
        yield chunk
    for chunk in fetch(offset) if size < 0 or offset < size else ():
        hasher.update(chunk)
        _write(fd, chunk, offset)
        offset += len(chunk)
        if 0 <= size < offset:
            break
        yield chunk
    path = partial_path(store, digest)
    if (size >= 0 and offset != size) or not digest.matches(hasher):
        os.unlink(path)
        raise Invalid(
            f"the blob {digest} of {size} bytes came as {offset} bytes with digest "
            f"{digest.algorithm}:{hasher.hexdigest()}",
            hint="its source is damaged or lies: try again, or another registry",
        )
    target = store.path(digest)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    os.rename(path, target)


def _write(fd: int, chunk: bytes | memoryview, offset: int) -> None:
    written = os.pwrite(fd, chunk, offset)
    while written < len(chunk):
        written += os.pwrite(fd, memoryview(chunk)[written:], offset + written)
