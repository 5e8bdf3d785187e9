"""The content store: an OCI layout that several writers share, and blobs that enter it whole or not at all."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import Invalid, NotFound, Unavailable
from mamushka.image.ingest import adopt, complete, ingest, partial_path, read_blob
from mamushka.image.store import ImageStore
from mamushka.spec.digest import sha256
from mamushka.spec.image import OCI_MANIFEST, Descriptor

BLOB = bytes(range(256)) * 8192
DIGEST = sha256(BLOB)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def pieces(content: bytes, step: int = 100_000) -> Iterator[bytes]:
    for start in range(0, len(content), step):
        yield content[start : start + step]


def partials(store: ImageStore) -> list[str]:
    return os.listdir(f"{store.root}/ingest")


def test_it_is_an_oci_layout(store: ImageStore) -> None:
    content = b'{"a": 1}'
    store.put(content, sha256(content))
    descriptor = Descriptor(OCI_MANIFEST, sha256(content), len(content))
    store.edit(lambda named, _: named.update({"docker.io/library/a:b": descriptor}))
    root = Path(store.root)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((root / "index.json").read_text())["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/library/a:b"
    assert (root / "blobs/sha256" / sha256(content).encoded).read_bytes() == content
    assert store.find("docker.io/library/a:b") == descriptor
    assert partials(store) == []


def test_an_empty_store_is_readable(store: ImageStore) -> None:
    assert store.entries() == ()
    assert not store.has(DIGEST)
    with pytest.raises(NotFound):
        store.read(DIGEST)
    assert not os.path.exists(store.root)


def test_put_refuses_another_digest(store: ImageStore) -> None:
    with pytest.raises(Invalid, match="does not match"):
        store.put(b"x", DIGEST)
    assert not store.has(DIGEST)


def test_blob_streams_while_it_enters(store: ImageStore) -> None:
    assert b"".join(ingest(store, DIGEST, len(BLOB), lambda offset: pieces(BLOB[offset:]))) == BLOB
    assert store.has(DIGEST, len(BLOB))
    assert partials(store) == []
    again = ingest(store, DIGEST, len(BLOB), lambda _: pytest.fail("fetched again"))
    assert b"".join(again) == BLOB


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 3_000_000), max_size=4))
def test_a_blob_in_pieces_equals_a_blob_at_once(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """However often it breaks off, the next one goes on where the last one stopped."""
    store = ImageStore(str(tmp_path_factory.mktemp("s")))
    asked: list[int] = []

    def fetch(offset: int) -> Iterable[bytes]:
        asked.append(offset)
        end = offset + cuts[len(asked) - 1] if len(asked) <= len(cuts) else len(BLOB)
        yield from pieces(BLOB[offset:end])
        if end < len(BLOB):
            raise Unavailable("broke off")

    for _ in range(len(cuts) + 1):
        try:
            complete(store, DIGEST, len(BLOB), fetch)
            break
        except Unavailable:
            continue
    assert b"".join(read_blob(store, DIGEST)) == BLOB
    assert asked == sorted(asked)
    assert partials(store) == []


@pytest.mark.parametrize("content", [BLOB[:-1] + b"x", BLOB + b"x", BLOB[:-1]])
def test_what_does_not_match_is_thrown_away(store: ImageStore, content: bytes) -> None:
    with pytest.raises(Invalid, match="came as"):
        list(ingest(store, DIGEST, len(BLOB), lambda offset: pieces(content[offset:])))
    assert not store.has(DIGEST)
    assert partials(store) == []


def test_a_damaged_part_is_noticed_and_thrown_away(store: ImageStore) -> None:
    store.prepare()
    Path(partial_path(store, DIGEST)).write_bytes(b"damaged")
    with pytest.raises(Invalid):
        list(ingest(store, DIGEST, len(BLOB), lambda offset: pieces(BLOB[offset:])))
    complete(store, DIGEST, len(BLOB), lambda offset: pieces(BLOB[offset:]))
    assert store.has(DIGEST, len(BLOB))


def test_a_part_longer_than_the_blob_is_thrown_away(store: ImageStore) -> None:
    store.prepare()
    Path(partial_path(store, DIGEST)).write_bytes(BLOB + BLOB)
    with pytest.raises(Invalid):
        list(ingest(store, DIGEST, len(BLOB), lambda _: pytest.fail("nothing is missing")))
    assert partials(store) == []


def test_many_want_one_blob_and_one_fetches(store: ImageStore) -> None:
    fetched: list[int] = []
    got: list[bytes] = []

    def fetch(offset: int) -> Iterable[bytes]:
        fetched.append(offset)
        return pieces(BLOB[offset:], 1000)

    def want() -> None:
        got.append(b"".join(ingest(store, DIGEST, len(BLOB), fetch)))

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [BLOB] * 6
    assert fetched == [0]


def test_who_gives_up_lets_the_next_go_on(store: ImageStore) -> None:
    first = ingest(store, DIGEST, len(BLOB), lambda offset: pieces(BLOB[offset:]))
    next(first)
    next(first)
    first.close()
    asked: list[int] = []

    def fetch(offset: int) -> Iterable[bytes]:
        asked.append(offset)
        return pieces(BLOB[offset:])

    complete(store, DIGEST, len(BLOB), fetch)
    assert asked == [200_000]


def test_adopted_under_the_digest_it_has(store: ImageStore) -> None:
    assert adopt(store, pieces(BLOB)) == (DIGEST, len(BLOB))
    assert store.has(DIGEST, len(BLOB))


def test_collect_keeps_what_is_wanted_and_continuable(store: ImageStore) -> None:
    keep, drop = sha256(b"keep"), sha256(b"drop")
    store.put(b"keep", keep)
    store.put(b"drop", drop)
    Path(store.staging_path()).write_bytes(b"of a killed writer")
    Path(partial_path(store, DIGEST)).write_bytes(BLOB[:10])
    assert store.collect({keep}) == len(b"drop") + len(b"of a killed writer")
    assert set(store.digests()) == {keep}
    assert partials(store) == [f"sha256-{DIGEST.encoded}"]
    assert store.collect({keep}, partial=True) == 10
    assert partials(store) == []


def test_lease_keeps_the_collector_out(store: ImageStore) -> None:
    with store.lease(), store.lease(), pytest.raises(BlockingIOError):
        store.lease(exclusive=True)
    store.lease(exclusive=True).close()


def test_edits_of_many_all_count(store: ImageStore) -> None:
    def name(number: int) -> None:
        content = b"%d" % number
        descriptor = Descriptor(OCI_MANIFEST, sha256(content), len(content))
        store.edit(lambda named, _: named.update({f"docker.io/library/a:{number}": descriptor}))

    threads = [threading.Thread(target=name, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(store.entries()) == 20
