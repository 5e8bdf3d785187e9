"""Archives between a real dockerd and us: what one saves the other loads, under the same id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from mamushka.engine.images import Images
from tests import peers
from tests.dockerd import NO_NETWORK, dockerd
from tests.integration.image.conftest import consume

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer, pytest.mark.slow]

Docker = Callable[..., bytes]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The docker command, speaking to a dockerd that has no network and lives as long as this file's tests."""
    peers.need_root()
    base = tmp_path_factory.mktemp("d")
    with dockerd(str(base), *NO_NETWORK, "--storage-driver=vfs") as client:
        yield lambda *words, **more: peers.run(*client, *words, **more)


def test_docker_loads_what_we_save(docker: Docker, images: Images, layered_reference: str) -> None:
    consume(images.pull(layered_reference))
    images.tag(layered_reference, "ours/layered:1")
    said = docker("load", input=b"".join(images.save(["ours/layered:1"])))
    assert said.decode().split()[-1] == "ours/layered:1"
    (found,) = json.loads(docker("image", "inspect", "ours/layered:1"))
    assert found["Id"] == images.get("ours/layered:1").id
    assert found["RootFS"]["Layers"] == list(images.get("ours/layered:1").layers)


def test_we_load_what_docker_saves(
    docker: Docker, images: Images, layered_reference: str, busybox_reference: str
) -> None:
    for number, reference in enumerate((layered_reference, busybox_reference)):
        consume(images.pull(reference))
        images.tag(reference, f"from/docker:{number}")
        docker("load", input=b"".join(images.save([f"from/docker:{number}"])))
        images.remove(f"from/docker:{number}")
    saved = docker("save", "from/docker:0", "from/docker:1")
    assert sorted(images.load([saved])) == ["from/docker:0", "from/docker:1"]  # docker saves in no order
    assert images.get("from/docker:0").id == images.get(layered_reference).id
    assert images.get("from/docker:1").layers == images.get(busybox_reference).layers
