"""Uploading to a registry that accepts, interrupts, mounts, misses or lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.errors import Denied, Invalid, NotFound, Unavailable
from mamushka.image import upload
from mamushka.image.http import Transport
from mamushka.image.registry import Patience, Registry
from mamushka.image.store import ImageStore
from mamushka.image.upload import MOUNTED, PRESENT, UPLOADED, Upload
from mamushka.spec.digest import sha256
from tests.scripted import Request, Scripted, response, scripted

BLOB = bytes(range(256)) * 40
DIGEST = sha256(BLOB)


class Repository:
    """What a good registry does with uploads; ``interruptions`` counts parts whose connection breaks halfway."""

    def __init__(self, interruptions: int = 0, mounts: bool = False) -> None:
        self.received = b""
        self.blobs: set[str] = set()
        self.interruptions, self.mounts = interruptions, mounts

    def __call__(self, request: Request) -> bytes:
        if request.method == "HEAD":
            return response(200 if request.path.rpartition("/")[2] in self.blobs else 404)
        if request.method == "POST":
            if "mount=" in request.path and self.mounts:
                return response(201)
            self.received = b""
            return response(202, Location="/upload?state=1")
        if request.method == "GET":
            return response(
                204, Location="/upload?state=2", Range=f"0-{max(0, len(self.received) - 1)}", Content_Length=None
            )
        start = int(request.headers.get("content-range", "0-").partition("-")[0])
        if start != len(self.received):
            return response(416)
        if request.method == "PATCH" and self.interruptions:
            self.interruptions -= 1
            self.received += request.body[: len(request.body) // 2]
            raise ConnectionAbortedError
        self.received += request.body
        if request.method == "PUT":
            if f"digest=sha256%3A{sha256(self.received).encoded}" not in request.path:
                return response(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
            self.blobs.add(sha256(self.received))
            return response(201)
        return response(202, Location="/upload?state=3", Range=f"0-{len(self.received) - 1}")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(str(tmp_path))
    store.put(BLOB, DIGEST)
    return store


def target(server: Scripted, store: ImageStore) -> Upload:
    registry = Registry(server.url, Transport(), patience=Patience(attempts=3, sleep=lambda _: None))
    return Upload(registry, "a/b", store)


def test_whole(store: ImageStore) -> None:
    repository = Repository()
    sent: list[int] = []
    with scripted(repository) as server:
        assert target(server, store).blob(DIGEST, progress=sent.append) == UPLOADED
        assert target(server, store).blob(DIGEST) == PRESENT
    assert repository.received == BLOB
    assert sent[-1] == len(BLOB)


@pytest.mark.parametrize("interruptions", [0, 1, 2])
def test_parts_go_on_where_they_were_interrupted(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, interruptions: int
) -> None:
    monkeypatch.setattr(upload, "WHOLE", 1000)
    monkeypatch.setattr(upload, "PART", 3000)
    repository = Repository(interruptions)
    with scripted(repository) as server:
        assert target(server, store).blob(DIGEST) == UPLOADED
        assert (
            server.asked().count("GET /upload?state=1") + server.asked().count("GET /upload?state=2")
            <= interruptions + 1
        )
    assert repository.blobs == {DIGEST}


def test_a_connection_that_always_breaks_ends_the_patience(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "WHOLE", 1000)

    def answer(request: Request) -> bytes:
        if request.method == "POST":
            return response(202, Location="/upload")
        if request.method == "HEAD":
            return response(404)
        raise ConnectionAbortedError

    with scripted(answer) as server, pytest.raises(Unavailable):
        target(server, store).blob(DIGEST)


def test_mounted(store: ImageStore) -> None:
    with scripted(Repository(mounts=True)) as server:
        assert target(server, store).blob(DIGEST, mount_from="neighbour") == MOUNTED
        assert f"mount={DIGEST.replace(':', '%3A')}&from=neighbour" in server.asked()[-1]
    with scripted(Repository()) as server:
        assert target(server, store).blob(DIGEST, mount_from="neighbour") == UPLOADED


def test_refusals(store: ImageStore) -> None:
    with scripted(lambda r: response(404 if r.method == "HEAD" else 403)) as server, pytest.raises(Denied):
        target(server, store).blob(DIGEST)
    with scripted(lambda r: response(404 if r.method == "HEAD" else 202)) as server, pytest.raises(Invalid):
        target(server, store).blob(DIGEST)
    with scripted(Repository()) as server, pytest.raises(NotFound):
        target(server, store).blob(sha256(b"not here"))


def test_refused_in_the_middle(store: ImageStore, tmp_path: Path) -> None:
    """What the registry says counts, not that it closed the connection on us."""
    big = bytes(8 << 20)
    store.put(big, sha256(big))

    def answer(request: Request) -> Iterator[bytes]:
        if request.method == "HEAD":
            yield response(404)
        elif request.method == "POST":
            yield response(202, Location="/upload")
        else:
            yield response(413, b'{"errors": [{"code": "SIZE_INVALID", "message": "too large"}]}')

    with scripted(answer) as server, pytest.raises(Invalid, match="too large"):
        target(server, store).blob(sha256(big))
