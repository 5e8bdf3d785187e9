"""Pulling what skopeo has pushed, and pushing what skopeo then reads: digests equal, trees equal."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from mamushka.engine.images import Images
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable
from mamushka.image.remote import Remotes
from mamushka.image.upload import Upload
from mamushka.spec import platform as platforms
from mamushka.spec.digest import sha256
from tests import peers
from tests import registry as registries
from tests.images import Layout
from tests.integration.image.conftest import Make, consume, files
from tests.scripted import manifest

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer]


def remote_digest(reference: str) -> str:
    raw = peers.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    return str(sha256(raw))


def test_pull(images: Images, layered_reference: str) -> None:
    said = consume(images.pull(layered_reference))
    assert said[-1] == f"Status: Downloaded newer image for {layered_reference}"
    image = images.get(layered_reference)
    assert image.names == (layered_reference,)
    assert image.digest == remote_digest(layered_reference)
    assert len(image.layers) == 5
    assert all(images.layers.has(layer) for layer in image.layers)
    assert consume(images.pull(layered_reference))[-1] == f"Status: Image is up to date for {layered_reference}"
    assert not os.listdir(f"{images.store.root}/ingest")


def test_skopeo_reads_the_store_itself(images: Images, layered_reference: str) -> None:
    consume(images.pull(layered_reference))
    found = json.loads(peers.run("skopeo", "inspect", f"oci:{images.store.root}:{layered_reference}"))
    assert found["Digest"] == images.get(layered_reference).digest


def test_pull_by_digest_and_by_id(images: Images, layered_reference: str) -> None:
    digest = remote_digest(layered_reference)
    name = f"{layered_reference.rpartition(':')[0]}@{digest}"
    consume(images.pull(name))
    image = images.get(name)
    assert image.names == ()
    assert image.digests == (name,)
    assert images.get(image.id) == images.get(image.id[7:19]) == image


def test_push_keeps_every_digest(images: Images, make: Make, registry: str, layered_reference: str) -> None:
    consume(images.pull(layered_reference))
    target = f"{registry}/pushed/again:1"
    images.tag(layered_reference, target)
    said = consume(images.push(target))
    assert any(status.startswith("Mounted from") for status in said)
    assert remote_digest(target) == remote_digest(layered_reference)
    assert consume(images.push(target)).count("Layer already exists") == 6
    other = make("other")
    consume(other.pull(target))
    assert other.get(target).id == images.get(layered_reference).id


def test_push_to_another_registry(images: Images, layered_reference: str, tmp_path: Path) -> None:
    consume(images.pull(layered_reference))
    with registries.registry(str(tmp_path)) as address:
        target = f"{address}/copy:latest"
        images.tag(layered_reference, target)
        assert "Pushed" in consume(images.push(target))
        peers.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{target}", f"oci:{tmp_path}/copy:x")
        assert remote_digest(target) == remote_digest(layered_reference)


def test_zstd_layers(images: Images, registry: str, layered_image: Layout, layered_reference: str) -> None:
    target = f"{registry}/zstd:latest"
    registries.push(layered_image, target, "--dest-compress-format", "zstd", "--dest-compress")
    consume(images.pull(layered_reference))
    consume(images.pull(target))
    assert images.get(target).layers == images.get(layered_reference).layers


def test_docker_schema_2(images: Images, registry: str, layered_image: Layout, layered_reference: str) -> None:
    target = f"{registry}/schema2:latest"
    registries.push(layered_image, target, "--format", "v2s2")
    consume(images.pull(target))
    consume(images.pull(layered_reference))
    assert images.get(target).digest == remote_digest(target)
    assert images.get(target).layers == images.get(layered_reference).layers


def two_platforms(registry: str, busybox_image: Layout, tmp_path: Path) -> str:
    """A name for an index of two platforms, with different configs over the same layer."""
    layout = tmp_path / "layout"
    peers.run("cp", "-r", busybox_image.path, str(layout))
    entries = []
    for architecture in ("amd64", "arm64"):
        tag = f"{layout}:{architecture}"
        peers.run("umoci", "config", "--image", f"{layout}:{busybox_image.tag}", "--tag", architecture,
                  "--architecture", architecture)  # fmt: skip
        target = f"{registry}/platforms:{architecture}"
        peers.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{tag}", f"docker://{target}")
        raw = peers.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{target}")
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": str(sha256(raw)),
                "size": len(raw),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    raw = json.dumps(index).encode()
    Remotes({}).registry(registry).put_manifest("platforms", "all", raw, index["mediaType"])  # type: ignore[arg-type]
    return f"{registry}/platforms:all"


def test_an_index_of_platforms(images: Images, registry: str, busybox_image: Layout, tmp_path: Path) -> None:
    name = two_platforms(registry, busybox_image, tmp_path)
    consume(images.pull(name, platform="linux/arm64"))
    assert images.get(name).platform == "linux/arm64"
    with pytest.raises(NotFound, match="not for linux/amd64"):
        images.get(name, platform="linux/amd64")
    consume(images.pull(name, platform="linux/amd64"))
    one, other = images.get(name, platform="linux/amd64"), images.get(name, platform="linux/arm64")
    assert one.id != other.id
    assert one.digest == other.digest == remote_digest(name)
    with pytest.raises(NotFound, match="linux/s390x"):
        consume(images.pull(name, platform="linux/s390x"))
    assert len(images.images()) == 2
    target = f"{registry}/platforms-again:all"
    images.tag(name, target)
    consume(images.push(target))
    assert remote_digest(target) == remote_digest(name)


def test_all_tags(images: Images, registry: str, busybox_image: Layout, unique: str) -> None:
    for tag in ("a", "b"):
        registries.push(busybox_image, f"{registry}/{unique}:{tag}")
    consume(images.pull(f"{registry}/{unique}", all_tags=True))
    assert images.images()[0].names == (f"{registry}/{unique}:a", f"{registry}/{unique}:b")
    with pytest.raises(Invalid):
        consume(images.pull(f"{registry}/{unique}:a", all_tags=True))


def test_a_moved_tag_leaves_the_old_image(
    images: Images, registry: str, busybox_image: Layout, layered_image: Layout, unique: str
) -> None:
    name = registries.push(busybox_image, f"{registry}/{unique}:moving")
    consume(images.pull(name))
    before = images.get(name)
    registries.push(layered_image, name)
    consume(images.pull(name))
    assert images.get(name).id != before.id
    assert images.get(before.id).names == ()
    removed, freed = images.prune()
    assert ("deleted", before.id) in removed
    assert [image.id for image in images.images()] == [images.get(name).id]
    assert freed > 0


def test_remove(images: Images, layered_reference: str, busybox_reference: str) -> None:
    consume(images.pull(layered_reference))
    consume(images.pull(busybox_reference))
    images.tag(layered_reference, "one:1")
    images.tag(layered_reference, "two:2")
    image = images.get("one:1")
    assert images.remove("one:1") == [("untagged", "one:1")]
    with pytest.raises(Conflict, match="several"):
        images.remove(image.id)
    removed = images.remove(image.id, force=True)
    assert ("untagged", "two:2") in removed
    assert ("deleted", image.id) in removed
    with pytest.raises(NotFound):
        images.get(image.id)
    # What busybox shares with it stays.
    assert all(images.layers.has(layer) for layer in images.get(busybox_reference).layers)
    images.remove(busybox_reference)
    assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]
    assert not [path for path in files(images.layers.root) if not path.endswith(".lock")]


def test_what_is_used_stays(tmp_path: Path, busybox_reference: str) -> None:
    images = Images(str(tmp_path / "data"), users=lambda _: ["abcdef"], environment={})
    consume(images.pull(busybox_reference))
    image = images.get(busybox_reference)
    with pytest.raises(Conflict, match="abcdef"):
        images.remove(busybox_reference)
    with pytest.raises(Conflict):
        images.remove(image.id, force=True)
    assert images.remove(busybox_reference, force=True)[0] == ("untagged", busybox_reference)
    assert images.get(image.id).names == ()
    assert images.prune(all=True)[0] == []


def test_a_foreign_image_is_pulled_with_a_warning(
    images: Images, registry: str, busybox_image: Layout, tmp_path: Path
) -> None:
    """A name that leads to one platform only, and nobody asked for that one."""
    name = two_platforms(registry, busybox_image, tmp_path)
    foreign = "arm64" if platforms.host().architecture == "amd64" else "amd64"
    native = "amd64" if foreign == "arm64" else "arm64"
    one = name.rpartition(":")[0] + ":"
    warning = (
        f"WARNING: The requested image's platform (linux/{foreign}) does not match the detected host platform "
        f"({platforms.host()}) and no specific platform was requested"
    )
    for _ in range(2):
        assert warning in [step.status for step in images.pull(one + foreign)]
    for steps in (images.pull(one + native), images.pull(one + foreign, platform=f"linux/{foreign}")):
        assert not [step.status for step in steps if "WARNING" in step.status]


def test_an_image_of_another_platform_protects_the_name(tmp_path: Path, registry: str, busybox_image: Layout) -> None:
    """Two platforms under one index: while one is used, the other is not deleted from under it."""
    name = two_platforms(registry, busybox_image, tmp_path)
    used: list[str] = []
    images = Images(str(tmp_path / "data"), users=lambda id: ["abcdef"] if id in used else [], environment={})
    for platform in ("linux/amd64", "linux/arm64"):
        consume(images.pull(name, platform=platform))
    used.append(images.get(name, platform="linux/amd64").id)
    with pytest.raises(Conflict):
        images.remove(images.get(name, platform="linux/arm64").id, force=True)
    assert images.prune(all=True)[0] == []
    used.clear()
    images.remove(name)
    assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]


def test_while_others_work_an_image_only_loses_its_name(images: Images, busybox_reference: str) -> None:
    consume(images.pull(busybox_reference))
    image = images.get(busybox_reference)
    with images.lease():
        assert {action for action, _ in images.remove(busybox_reference)} == {"untagged"}
        assert images.get(image.id).names == ()
        with pytest.raises(Unavailable, match="another process"):
            images.prune()
    assert images.prune(filters={"until": [str(image.created)]})[0] == []
    with pytest.raises(Invalid, match="colour"):
        images.prune(filters={"colour": ["red"]})
    assert ("deleted", image.id) in images.prune(filters={"until": ["1s"]})[0]


def test_lists(images: Images, layered_reference: str, busybox_reference: str) -> None:
    consume(images.pull(layered_reference))
    consume(images.pull(busybox_reference))
    newest, oldest = images.images()
    assert newest.created > oldest.created
    assert {newest.names[0], oldest.names[0]} == {layered_reference, busybox_reference}

    def names(**filters: str) -> list[str]:
        return [image.names[0] for image in images.images(filters={key: [text] for key, text in filters.items()})]

    assert names(reference="*/busybox*") == [busybox_reference]
    assert names(label="org.example.made-by=umoci") == [busybox_reference]
    assert names(dangling="true") == []
    assert names(since=oldest.names[0]) == [newest.names[0]]
    assert names(before=newest.id) == [oldest.names[0]]
    with pytest.raises(Invalid):
        names(colour="red")
    lines = images.history(layered_reference)
    assert lines[0]["id"] == images.get(layered_reference).id
    assert sum(line["size"] for line in lines) == images.get(layered_reference).size  # type: ignore[misc]


def test_one_platform_only(images: Images, busybox_reference: str) -> None:
    with pytest.raises(NotFound, match="only, not for linux/s390x"):
        consume(images.pull(busybox_reference, platform="linux/s390x"))
    assert images.images() == []


def test_absent(images: Images, registry: str) -> None:
    with pytest.raises(NotFound):
        images.get("nothing:here")
    with pytest.raises(NotFound):
        consume(images.pull(f"{registry}/nothing/here"))
    with pytest.raises(NotFound):
        images.tag("nothing", "else")
    assert images.images() == []
    assert images.get("host").id == "host"


def test_a_layer_that_lies_leaves_nothing(images: Images, registry: str, tmp_path: Path) -> None:
    """A config whose diff_id is another layer's: refused, and the pull leaves no name and no layer."""
    layer = gzip.compress(b"\0" * 10240)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(sha256(b"other"))]}}
    ).encode()
    raw = manifest(config, layer)
    client = Remotes({}).registry(registry)
    source = Images(str(tmp_path / "source"), environment={}).store
    for blob in (config, layer):
        source.put(blob, sha256(blob))
        Upload(client, "liar", source).blob(sha256(blob))
    client.put_manifest("liar", "latest", raw, "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(Invalid, match="unpacks to"):
        consume(images.pull(f"{registry}/liar"))
    assert images.images() == []
    assert images.layers.layers() == []
    assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]


def test_a_full_disk_is_named_and_left_empty(tmp_path: Path, layered_reference: str) -> None:
    """The session's mount namespace is the suite's own, so that a small filesystem may be mounted."""
    (tmp_path / "small").mkdir()
    peers.run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path / "small"))
    try:
        images = Images(str(tmp_path / "small/data"), environment={})
        with pytest.raises(Unavailable, match="no space left") as caught:
            consume(images.pull(layered_reference))
        assert "prune" in caught.value.hint
        assert images.images() == []
        assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]
        assert [name for name in files(images.layers.root) if not name.endswith(".lock")] == []
    finally:
        peers.run("umount", str(tmp_path / "small"))
