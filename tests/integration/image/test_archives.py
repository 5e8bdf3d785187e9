"""Archives: what we save others load, what others save we load, byte for byte where bytes are names."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.engine.images import Images
from mamushka.errors import Invalid, NotFound
from mamushka.spec.digest import sha256
from tests import peers
from tests.images import Layout
from tests.integration.image.conftest import Make, consume, files

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer]


def chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(1 << 16):
            yield piece


def inspect(source: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(peers.run("skopeo", "inspect", source))
    return found


@pytest.fixture
def pulled(images: Images, layered_reference: str, busybox_reference: str) -> Images:
    consume(images.pull(layered_reference))
    consume(images.pull(busybox_reference))
    images.tag(layered_reference, "example/layered:1")
    images.tag(busybox_reference, "busybox:2")
    return images


def saved(images: Images, names: list[str], path: Path, **how: str) -> Path:
    with open(path, "wb") as file:
        for piece in images.save(names, **how):
            file.write(piece)
    return path


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_there_and_back(pulled: Images, make: Make, tmp_path: Path, form: str) -> None:
    archive = saved(pulled, ["example/layered:1", "busybox:2"], tmp_path / "a.tar", format=form)
    again = saved(pulled, ["example/layered:1", "busybox:2"], tmp_path / "b.tar", format=form)
    assert archive.read_bytes() == again.read_bytes()
    other = make("other")
    assert other.load(chunks(archive)) == ["example/layered:1", "busybox:2"]
    for name in ("example/layered:1", "busybox:2"):
        one, two = pulled.get(name), other.get(name)
        assert (one.id, one.digest, one.layers) == (two.id, two.digest, two.layers)
    other.remove("example/layered:1")
    other.remove("busybox:2")
    assert files(other.store.root) == ["index.json", "lease", "lock", "oci-layout"]


def test_a_compressed_archive(pulled: Images, make: Make, tmp_path: Path) -> None:
    archive = saved(pulled, ["busybox:2"], tmp_path / "a.tar")
    assert make("other").load([gzip.compress(archive.read_bytes())]) == ["busybox:2"]


def test_skopeo_reads_both_forms(pulled: Images, tmp_path: Path) -> None:
    archive = saved(pulled, ["example/layered:1"], tmp_path / "a.tar")
    layers = list(pulled.get("example/layered:1").layers)
    assert inspect(f"docker-archive:{archive}:example/layered:1")["Layers"] == layers
    assert inspect(f"oci-archive:{archive}:1")["Digest"] == pulled.get("example/layered:1").digest


def test_podman_loads(pulled: Images, tmp_path: Path) -> None:
    archive = saved(pulled, ["example/layered:1"], tmp_path / "a.tar")
    with tempfile.TemporaryDirectory() as short:  # podman takes no more than 50 characters
        podman = ["podman", *(f"--{place}={short}/{place}" for place in ("root", "runroot", "tmpdir"))]
        said = peers.run(*podman, "--storage-driver=vfs", "load", "--input", str(archive)).decode()
        assert "example/layered:1" in said
        found = json.loads(peers.run(*podman, "--storage-driver=vfs", "image", "inspect", "example/layered:1"))
    assert f"sha256:{found[0]['Id']}" == pulled.get("example/layered:1").id


def test_umoci_reads_the_directory(pulled: Images, make: Make, tmp_path: Path) -> None:
    path = tmp_path / "layout"
    pulled.save_directory(["example/layered:1"], str(path))
    pulled.save_directory(["busybox:2"], str(path))
    pulled.save_directory(["busybox:2"], str(path))
    assert peers.run("umoci", "list", "--layout", str(path)).decode().split() == ["1", "2"]
    peers.run("umoci", "unpack", "--image", f"{path}:1", str(tmp_path / "bundle"))
    assert sorted(os.listdir(path)) == ["blobs", "index.json", "oci-layout"]
    assert sorted(make("other").load_directory(str(path))) == ["busybox:2", "example/layered:1"]


def test_what_skopeo_saves(images: Images, layered_image: Layout, tmp_path: Path) -> None:
    peers.run("skopeo", "copy", "--quiet", layered_image.skopeo, f"docker-archive:{tmp_path}/d.tar:docker.io/x/y:z")
    peers.run("skopeo", "copy", "--quiet", layered_image.skopeo, f"oci-archive:{tmp_path}/o.tar:z")
    assert images.load(chunks(tmp_path / "d.tar")) == ["x/y:z"]
    (identifier,) = images.load(chunks(tmp_path / "o.tar"))
    assert images.get("x/y:z").layers == images.get(identifier).layers
    assert images.load_directory(layered_image.path) == [identifier]
    assert images.get(identifier).digest == inspect(layered_image.skopeo)["Digest"]


def archive(members: dict[str, bytes | str]) -> bytes:
    """A tar of files; a string is a symbolic link's target."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def dump(body: object) -> bytes:
    return json.dumps(body).encode()


LOWER = archive({"etc/one": b"1"})
UPPER = archive({"etc/two": b"2"})


def test_docker_1_10(images: Images) -> None:
    """Layers in directories of their own, one of them a link to another's, config beside them."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(sha256(LOWER)), str(sha256(UPPER)), str(sha256(LOWER))]},
    }
    members: dict[str, bytes | str] = {
        "a/layer.tar": LOWER,
        "b/layer.tar": UPPER,
        "c/layer.tar": "../a/layer.tar",
        "config.json": dump(config),
        "manifest.json": dump(
            [
                {
                    "Config": "config.json",
                    "RepoTags": ["old:1", "old:2"],
                    "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"],
                }
            ]
        ),
    }
    assert images.load([archive(members)]) == ["old:1", "old:2"]
    assert images.get("old:1").id == str(sha256(dump(config)))
    assert len(images.get("old:2").layers) == 3


def test_before_docker_1_10(images: Images) -> None:
    members: dict[str, bytes | str] = {
        "aa/json": dump({"id": "aa", "created": "2014-01-01T00:00:00Z"}),
        "aa/layer.tar": LOWER,
        "bb/json": dump({"id": "bb", "parent": "aa", "architecture": "amd64", "config": {"Cmd": ["sh"]}}),
        "bb/layer.tar": UPPER,
        "repositories": dump({"older": {"latest": "bb"}}),
    }
    assert images.load([archive(members)]) == ["older:latest"]
    image = images.get("older")
    assert image.layers == (str(sha256(LOWER)), str(sha256(UPPER)))
    assert image.config["config"] == {"Cmd": ["sh"]}


def _layout(**more: bytes) -> dict[str, bytes | str]:
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', **more}


LIE = dump({"schemaVersion": 2, "manifests": [{"mediaType": "", "digest": str(sha256(b"x")), "size": 1}]})


@pytest.mark.parametrize(
    "members",
    [
        {"etc/passwd": b"a root filesystem"},
        {"index.json": b"{}"},
        {"index.json": b"not json"},
        {"index.json": LIE},
        {"index.json": LIE, f"blobs/sha256/{sha256(b'x').encoded}": b"y"},
        {"manifest.json": b"[]"},
        {"manifest.json": dump([{"Config": "../../etc/passwd", "Layers": []}])},
        {
            "manifest.json": dump([{"Config": "c", "Layers": ["l"]}]),
            "c": dump({"rootfs": {"diff_ids": []}}),
            "l": LOWER,
        },
        {"manifest.json": "manifest.json"},
        {"repositories": dump({"x": {"y": "a"}}), "a/json": dump({"parent": "a"}), "a/layer.tar": LOWER},
    ],
)
def test_refused_archives_leave_nothing(images: Images, members: dict[str, bytes | str]) -> None:
    with pytest.raises(Invalid):
        images.load([archive(members)])
    assert images.images() == []
    assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]


def test_torn_archive(images: Images, pulled: Images, tmp_path: Path) -> None:
    whole = saved(pulled, ["busybox:2"], tmp_path / "a.tar").read_bytes()
    with pytest.raises(Invalid):
        images.load([whole[: len(whole) // 2]])


def test_nothing_there(images: Images, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        images.load_directory(str(tmp_path / "nowhere"))
    with pytest.raises(NotFound):
        list(images.save(["nothing"]))
