"""The same probe behind other people's walls, as they come: docker's and podman's default box.

Debian 12's versions are meant: docker 20.10 and podman 4.3, with runc 1.1. The table of docs/guides/audit.md is what
these tests assert.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.engine.audit import Audit, Report
from mamushka.network.namespace import Entered, new_namespace
from tests import peers
from tests.dockerd import dockerd
from tests.integration.audit import scores

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.peer, pytest.mark.slow]

# podman raises limits to a million descriptors, which needs a capability that a nested root may lack.
LIMITS = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000")
ADDRESSES = "/var/lib/cni"  # where its network plug-ins remember the last address that they gave
NAMESPACES = "/run/netns"  # which podman mounts over itself


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A network namespace for these engines' bridges and filters, which they leave."""
    peers.need_root()
    fd = new_namespace({})
    try:
        with Entered(fd):
            peers.run("ip", "link", "set", "lo", "up")
            yield
    finally:
        os.close(fd)


def archive(path: str) -> str:
    """An image's root without any program."""
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("nothing"))
    return path


def audited(directory: Any, command: list[str], *options: str) -> Report:
    """What the probe reaches as the first process of that engine's container."""
    with Audit(str(directory / "audit")) as audit:
        audit.write()
        words = [*command, "run", "--rm", "-v", f"{audit.probe}:/probe:ro", *options, "empty", "/probe"]
        done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return Report(command[0], "empty", audit.judge(done.stdout))


@pytest.fixture(scope="module")
def docker(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Docker's own wall, with the image ``empty`` and its default bridge."""
    base = str(tmp_path_factory.mktemp("d"))
    with dockerd(base, "--storage-driver=vfs", "--cgroup-parent", "mamushka-docker") as client:
        peers.run(*client, "import", archive(f"{base}/empty.tar"), "empty")
        yield client


def test_dockers_default_box(docker: list[str], tmp_path: Any) -> None:
    found = audited(tmp_path, docker)
    assert {item.probe for item in found.reached} - scores.of_this_machine() == scores.DOCKER
    assert found.axes == scores.DOCKER_AXES | scores.secrets_of_this_machine(5)
    # Ours, on an image that is not the host, reaches a part of that.
    assert scores.DEFAULT - {"programs"} < scores.DOCKER


@pytest.fixture(scope="module")
def podman(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Podman's own wall, with Debian's runc and the default bridge."""
    peers.need("podman", "runc", "busybox")
    known, mounted = os.path.exists(ADDRESSES), os.path.ismount(NAMESPACES)
    base = tmp_path_factory.mktemp("podman")
    command = [
        peers.find("podman"), "--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver", "vfs",
        "--cgroup-manager", "cgroupfs", "--runtime", peers.find("runc"),
    ]  # fmt: skip
    peers.run(*command, "import", archive(str(base / "empty.tar")), "empty")
    with contextlib.chdir(base):  # conmon leaves a file named oom where it is called
        yield command
    subprocess.run([*command, "rm", "-af", "-t", "0"], capture_output=True, check=False)
    subprocess.run([*command, "rmi", "-af"], capture_output=True, check=False)
    peers.leave(base)
    if not known:
        shutil.rmtree(ADDRESSES, ignore_errors=True)
    if not mounted:
        subprocess.run(["umount", "-l", NAMESPACES], capture_output=True, check=False)


def test_podmans_default_box(podman: list[str], tmp_path: Any) -> None:
    peers.run(
        *podman, "run", "--rm", *LIMITS, "-v", f"{peers.find('busybox')}:/true:ro", "empty", "/true", "true"
    )  # the bridge is made
    found = audited(tmp_path, podman, *LIMITS)
    assert {item.probe for item in found.reached} - scores.of_this_machine() == scores.PODMAN
    assert found.axes == scores.PODMAN_AXES | scores.secrets_of_this_machine(35)
