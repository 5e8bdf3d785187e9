"""Several processes pull one image at once, and pulls are killed at every point: the next one always succeeds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamushka.engine.images import Images
from tests import registry as registries
from tests.images import Layout, build
from tests.integration.image.conftest import Make, consume, files

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer]

PULL = """
import sys
from mamushka.engine.images import Images
for step in Images(sys.argv[1], environment={}).pull(sys.argv[2]):
    if step.status in ("Pull complete", "Download complete"):
        print(step.status, step.layer, flush=True)
"""


def pull(data: Path, reference: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PULL, str(data), reference], stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def bulky_reference(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three layers of a few megabytes that do not compress, with a few hundred files."""

    def grow(root: str) -> None:
        directory = os.path.join(root, f"grown-{random.getrandbits(64):x}")
        os.mkdir(directory)
        for number in range(200):
            with open(os.path.join(directory, str(number)), "wb") as file:
                file.write(os.urandom(20_000))

    image: Layout = build(str(tmp_path_factory.mktemp("bulky")), "bulky", [grow] * 3)
    return registries.push(image, f"{registry}/bulky:latest")


def check_whole(images: Images, reference: str) -> None:
    """Everything is here and nothing else."""
    image = images.get(reference)
    for layer in image.layers:
        assert len(files(images.layers.path(layer))) == 200
    assert os.listdir(f"{images.store.root}/ingest") == []
    for digest in images.store.digests():
        content = Path(images.store.path(digest)).read_bytes()
        digest.verify(content, "the blob")
    images.remove(reference)
    assert files(images.store.root) == ["index.json", "lease", "lock", "oci-layout"]
    assert [name for name in files(images.layers.root) if not name.endswith(".lock")] == []


def test_four_processes_pull_one_image(make: Make, tmp_path: Path, bulky_reference: str) -> None:
    pullers = [pull(tmp_path / "data", bulky_reference) for _ in range(4)]
    for puller in pullers:
        puller.communicate(timeout=120)
    assert [puller.returncode for puller in pullers] == [0] * 4
    check_whole(make("data"), bulky_reference)


def test_killed_at_many_points(make: Make, tmp_path: Path, bulky_reference: str) -> None:
    begin = time.monotonic()
    consume(make("reference").pull(bulky_reference))
    span = (time.monotonic() - begin) + 0.4  # an interpreter's start before it
    for point in range(12):
        puller = pull(tmp_path / "data", bulky_reference)
        time.sleep(span * (point + 1) / 12)
        puller.send_signal(signal.SIGKILL)
        puller.communicate(timeout=60)
        images = make("data")
        if point % 3 == 2:
            consume(images.pull(bulky_reference))
            check_whole(images, bulky_reference)
    images = make("data")
    consume(images.pull(bulky_reference))
    check_whole(images, bulky_reference)


def test_killed_one_of_two(make: Make, tmp_path: Path, bulky_reference: str) -> None:
    """Who waits for another's download goes on with it when the other dies."""
    first, second = pull(tmp_path / "data", bulky_reference), pull(tmp_path / "data", bulky_reference)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    second.communicate(timeout=120)
    assert second.returncode == 0
    check_whole(make("data"), bulky_reference)


def test_a_layer_that_was_there_is_not_pulled_again(make: Make, tmp_path: Path, bulky_reference: str) -> None:
    puller = pull(tmp_path / "data", bulky_reference)
    assert puller.stdout is not None
    layer = next(line.split()[-1].decode() for line in puller.stdout if line.startswith(b"Pull complete"))
    puller.send_signal(signal.SIGKILL)
    puller.communicate(timeout=60)
    images = make("data")
    assert ("Already exists", layer) in [(step.status, step.layer) for step in images.pull(bulky_reference)]
    check_whole(images, bulky_reference)
