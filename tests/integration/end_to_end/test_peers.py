"""Others read what we write, run what we pack, and drive our runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import peers

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer]


Podman = Callable[..., bytes]


@pytest.fixture
def podman() -> Iterator[Podman]:
    """podman with a store of its own, in a place whose name is short enough for it (50 characters)."""
    peers.need("podman", "runc")
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as base:
        places = ["--root", f"{base}/s", "--runroot", f"{base}/r", "--tmpdir", f"{base}/t"]
        choices = ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        yield lambda *words: peers.run("podman", *places, *choices, *words)
        peers.leave(base)


def test_skopeo_reads_our_store_as_it_lies(mamushka: Command, roots: tuple[str, str], layered_reference: str) -> None:
    assert mamushka("pull", "-q", layered_reference).returncode == 0
    layouts = [str(path.parent) for path in Path(roots[0]).rglob("oci-layout")]
    assert len(layouts) == 1
    peers.need("skopeo")
    raw = peers.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{layered_reference}")
    assert peers.run("skopeo", "inspect", "--raw", f"oci:{layouts[0]}:{layered_reference}") == raw


@pytest.mark.parametrize("format", ["docker", "oci"])
def test_what_we_save_skopeo_reads(mamushka: Command, layered_reference: str, tmp_path: Path, format: str) -> None:
    assert mamushka("pull", "-q", layered_reference).returncode == 0
    saved = tmp_path / "saved.tar"
    done = mamushka("save", *(["--format", "oci"] if format == "oci" else []), "-o", str(saved), layered_reference)
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(peers.run("skopeo", "inspect", f"{format}-archive:{saved}"))
    assert len(seen["Layers"]) == 5


def test_what_we_save_podman_loads_and_runs(
    mamushka: Command, podman: Podman, busybox_reference: str, tmp_path: Path
) -> None:
    assert mamushka("pull", "-q", busybox_reference).returncode == 0
    assert mamushka("save", "-o", str(tmp_path / "saved.tar"), busybox_reference).returncode == 0
    podman("load", "-q", "-i", str(tmp_path / "saved.tar"))
    options = [
        "--runtime",
        peers.find("runc"),
        "run",
        "--rm",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
        "--network",
        "none",
    ]
    assert podman(*options, busybox_reference, "echo", "loaded") == b"loaded\n"


def test_what_podman_saves_we_load_and_run(
    mamushka: Command, podman: Podman, busybox_reference: str, tmp_path: Path
) -> None:
    podman("pull", "-q", "--tls-verify=false", busybox_reference)
    podman("save", "-q", "-o", str(tmp_path / "saved.tar"), busybox_reference)
    loaded = mamushka("load", "-i", str(tmp_path / "saved.tar"))
    assert busybox_reference in loaded.stdout.decode(), loaded.stderr.decode()
    done = mamushka("run", "--rm", "--network", "none", busybox_reference, "echo", "from podman")
    assert done.stdout == b"from podman\n"


def test_what_we_push_podman_pulls(
    mamushka: Command, busybox_reference: str, registry: str, unique: str, podman: Podman
) -> None:
    target = f"{registry}/{unique}:pushed"
    assert mamushka("pull", "-q", busybox_reference).returncode == 0
    assert mamushka("tag", busybox_reference, target).returncode == 0
    assert mamushka("push", "-q", target).returncode == 0
    podman("pull", "-q", "--tls-verify=false", target)
    assert target in podman("images", "--format", "{{.Repository}}:{{.Tag}}").decode()


def test_podman_drives_our_runtime(podman: Podman, busybox_reference: str) -> None:
    runtime = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")
    podman("pull", "-q", "--tls-verify=false", busybox_reference)
    run = [
        "--runtime",
        runtime,
        "run",
        "--rm",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
        "--network",
        "none",
    ]
    assert podman(*run, busybox_reference, "echo", "behind our wall") == b"behind our wall\n"
    with pytest.raises(AssertionError, match="exit 9"):
        podman(*run, busybox_reference, "sh", "-c", "exit 9")
    with pytest.raises(AssertionError, match="exit 127"):
        podman(*run, busybox_reference, "/no/such/program")
