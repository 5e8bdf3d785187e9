"""Other people's programs, found by name; a test that needs one skips with what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

# name: (where Debian puts it, the package that brings it)
PEERS = {
    "apparmor_parser": "apparmor",
    "buildah": "buildah",
    "busybox": "busybox-static",
    "bwrap": "bubblewrap",
    "containerd": "containerd",
    "criu": "criu",
    "crun": "crun",
    "ctr": "containerd",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "fuse-overlayfs": "fuse-overlayfs",
    "getfattr": "attr",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "pasta": "passt",
    "podman": "podman",
    "runc": "runc",
    "skopeo": "skopeo",
    "slirp4netns": "slirp4netns",
    "strace": "strace",
    "umoci": "umoci",
}
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def find(name: str) -> str:
    """The program's path, or an empty string."""
    return shutil.which(name, path=PATH) or ""


def need(*names: str) -> None:
    """Skip the calling test or fixture unless every program is there."""
    missing = [name for name in names if not find(name)]
    if missing:
        packages = " ".join(sorted({PEERS.get(name, name) for name in missing}))
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {packages}")


def need_root() -> None:
    """Skip the calling test or fixture unless it may change namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the kernel's namespaces, mounts and cgroups")


def run(*command: str, input: bytes | None = None, timeout: float = 120) -> bytes:
    """Run a peer and return its output; what it said on stderr becomes the failure's message."""
    need(command[0])
    done = subprocess.run(
        [find(command[0]), *command[1:]], input=input, capture_output=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode().strip()}"
    return done.stdout
