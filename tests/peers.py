"""Other people's programs, found by name; a test that needs one skips with what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

import pytest

from tests import host

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


def leave(base: str | os.PathLike[str], *, patience: float = 20.0) -> None:
    """Take down what a peer mounted at or below ``base``, once none of its processes names the place any more.

    A podman that returned may have left conmon to call ``podman container cleanup``. If that one starts late, it
    mounts the store again, or makes it anew where it is gone, and leaves the mount when it finds no container.
    """
    place = os.path.realpath(base)
    deadline = time.monotonic() + patience
    busy: list[str] = []
    clear = 0
    while clear < 2 and time.monotonic() < deadline:  # twice: in the middle of execve a process has no words
        time.sleep(0.05)
        busy = _naming(place)
        clear = 0 if busy else clear + 1
    for point in reversed(_mounts_below(place)):
        subprocess.run(["umount", "-l", point], check=True)
    assert not busy, f"after {patience} s there still run: " + "; ".join(busy)


def _naming(place: str) -> list[str]:
    """The command lines of others that name a place or what is below it."""
    others = (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())
    told = ((pid, host.command_line(pid)) for pid in others)
    return [f"{pid} {command}" for pid, command in told if re.search(re.escape(place) + r"(/|\s|$)", command)]


def _mounts_below(place: str) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    return [point for point in points if point == place or point.startswith(place + "/")]
