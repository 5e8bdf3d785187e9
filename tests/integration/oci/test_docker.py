"""mamushka-oci under docker, which drives it through containerd and its shim."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests import peers
from tests.dockerd import NO_NETWORK, dockerd
from tests.images import Layout

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.slow]

Docker = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, busybox_image: Layout) -> Iterator[Docker]:
    """The docker command of a dockerd whose one runtime is ours; the image ``busybox`` is there."""
    peers.need_root()
    base = str(tmp_path_factory.mktemp("d"))
    runtime = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")
    options = ["--add-runtime", f"ours={runtime}", "--default-runtime", "ours", *NO_NETWORK]
    with dockerd(base, *options, "--storage-driver=vfs", "--cgroup-parent", "mamushka-docker") as client:
        peers.run(
            "skopeo", "copy", "--quiet", busybox_image.skopeo, f"docker-archive:{base}/busybox.tar:busybox:latest"
        )
        peers.run(*client, "load", "--input", f"{base}/busybox.tar")
        yield lambda *words, **more: subprocess.run(
            [*client, *words], capture_output=True, timeout=120, check=False, **more
        )


def test_a_container_runs_and_its_code_is_told(docker: Docker) -> None:
    done = docker("run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo behind our wall; exit 9")
    assert (done.stdout, done.returncode) == (b"behind our wall\n", 9), done.stderr.decode()


@pytest.mark.parametrize(("program", "code"), [("/no/such/program", 127), ("/etc/passwd", 126)])
def test_what_cannot_run(docker: Docker, program: str, code: int) -> None:
    assert docker("run", "--rm", "--network", "none", "busybox", program).returncode == code


def test_a_life_with_exec_limits_and_a_pause(docker: Docker, unique: str) -> None:
    done = docker("run", "-d", "--name", unique, "--network", "none", "-m", "64m", "busybox", "sleep", "600")
    assert done.returncode == 0, done.stderr.decode()
    try:
        assert docker("exec", unique, "echo", "inside").stdout == b"inside\n"
        assert docker("exec", unique, "sh", "-c", "exit 4").returncode == 4
        assert docker("pause", unique).returncode == 0
        assert docker("unpause", unique).returncode == 0
        assert b"sleep" in docker("top", unique).stdout
        assert docker("stop", "-t", "0", unique).returncode == 0
        assert docker("inspect", "-f", "{{.State.ExitCode}}", unique).stdout == b"137\n"
    finally:
        assert docker("rm", "-f", unique).returncode == 0


def test_input_passes(docker: Docker) -> None:
    done = docker("run", "--rm", "-i", "--network", "none", "busybox", "cat", input=b"through")
    assert done.stdout == b"through"
