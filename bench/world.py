"""A world of its own for the benchmark: namespaces that end with it, and every contestant in them.

The engines bring daemons, bridges, rules and mounts. All of them live and die in one mount, network and pid
namespace; their state lies in one directory that is removed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from tests import images, peers
from tests.dockerd import dockerd
from tests.registry import registry

from bench.layers import split

INSIDE = "MAMUSHKA_BENCH_INSIDE"
CACHE = os.path.expanduser("~/.cache/mamushka-bench")


def enter() -> NoReturn:
    """Start the benchmark again inside its own namespaces."""
    own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    environment = {**os.environ, INSIDE: "1", "PATH": peers.PATH}
    os.execvpe("unshare", [*own, sys.executable, "-m", "bench", *sys.argv[1:]], environment)


def leave_init_to_reap() -> None:
    """Go on in a child; the first process of a pid namespace only collects what others leave to it."""
    worker = os.fork()
    if worker == 0:
        return
    while True:
        pid, status = os.wait()
        if pid == worker:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


class World:
    """Contestants, made on demand; ``missing`` says why one is not here."""

    def __init__(self, stack: ExitStack) -> None:
        self.root = stack.enter_context(tempfile.TemporaryDirectory(prefix="mamushka-bench-", dir="/var/tmp"))
        stack.callback(_unmount_below, self.root)
        self.programs = os.path.dirname(sys.executable)
        self._stack = stack
        self._registry = ""
        self._docker: list[str] | None = None
        subprocess.run([peers.find("ip"), "link", "set", "lo", "up"], check=True)
        # /run is memory, as on every distribution; what CNI's plugins keep on disk must not outlive this world.
        for place in ("/run", "/var/lib/cni"):
            if os.path.isdir(place):
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)

    def path(self, *parts: str) -> str:
        """A place on disk; directories above it are made."""
        return self._place(self.root, *parts)

    def run_path(self, *parts: str) -> str:
        """A place in memory, for what lives as long as a container."""
        return self._place("/run/bench", *parts)

    @staticmethod
    def _place(*parts: str) -> str:
        path = os.path.join(*parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def mamushka(self, *words: str, root: str = "") -> list[str]:
        """Our command line, with a data root and a run root of its own."""
        roots = ["--data-root", self.path(f"mamushka{root}", "data"), "--run-root", self.run_path(f"mamushka{root}")]
        return [os.path.join(self.programs, "mamushka"), *roots, *words]

    def podman(self, *words: str, root: str = "") -> list[str]:
        """podman with runc (Debian's crun refuses hosts with both kinds of cgroups)."""
        base = self.path(f"podman{root}", "root")
        places = ["--root", base, "--runroot", self.run_path(f"podman{root}"), "--tmpdir", self.run_path("podman.tmp")]
        choices = ["--runtime", peers.find("runc"), "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        return [peers.find("podman"), *places, *choices, *words]

    def docker(self, *words: str) -> list[str]:
        """The docker command, speaking to a dockerd of this world."""
        if self._docker is None:
            configuration = json.dumps({"insecure-registries": ["127.0.0.0/8"], "log-level": "error"})
            base, run = os.path.dirname(self.path("docker", "x")), self.run_path("docker")
            own = dockerd(base, "--cgroup-parent", "mamushka-bench-docker", run=run, configuration=configuration)
            self._docker = self._stack.enter_context(own)
        return [*self._docker, *words]

    def registry(self) -> str:
        """host:port of a docker-registry on loopback."""
        if not self._registry:
            os.makedirs(self.path("registry", "x"), exist_ok=True)
            self._registry = self._stack.enter_context(registry(self.path("registry")))
        return self._registry

    def rootfs(self) -> str:
        """A root filesystem with a static busybox, for those that take a directory."""
        root = self.path("rootfs")
        if not os.path.isdir(root):
            images.add_busybox(root)
        return root

    def busybox(self) -> str:
        """The same root filesystem as an image in the registry."""
        reference = f"{self.registry()}/busybox:latest"
        if not os.path.isdir(self.path("busybox")):
            image = images.busybox(self.path("busybox"))
            peers.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", image.skopeo, f"docker://{reference}")
        return reference

    def real_image(self) -> str:
        """The prepared Debian image in the registry."""
        reference = f"{self.registry()}/debian:bench"
        source = f"oci:{os.path.join(CACHE, 'layout')}:bench"
        peers.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{reference}")
        return reference

    def at_end(self, act: Callable[[], object]) -> None:
        """Do this before the world ends."""
        self._stack.callback(act)

    def missing(self, *names: str) -> list[str]:
        """Which of these peers are not installed."""
        return [name for name in names if not peers.find(name)]


@contextmanager
def world() -> Iterator[World]:
    """The world, ended in reverse order."""
    with ExitStack() as stack:
        stack.callback(_remove_cgroups, "mamushka-bench")
        yield World(stack)


def _unmount_below(root: str) -> None:
    """podman and docker keep their stores mounted."""
    with open("/proc/self/mounts") as file:
        places = [line.split()[1] for line in file]
    for place in reversed(places):
        if place.startswith(root):
            subprocess.run(["umount", "--lazy", place], check=False)


def _remove_cgroups(name: str) -> None:
    for directory, children, _ in os.walk("/sys/fs/cgroup", topdown=False):
        for child in children:
            if f"/{name}" in os.path.join(directory, child):
                try:
                    os.rmdir(os.path.join(directory, child))
                except OSError:
                    continue


def prepare_real_image() -> str:
    """The layout of a Debian with Python, Git, Perl and a compiler in five layers; made once, on the host's network."""
    archive = os.path.join(CACHE, "debian.tar")
    if not os.path.exists(archive):
        os.makedirs(CACHE, exist_ok=True)
        include = "--include=python3,git,perl,ca-certificates,gcc,libc6-dev"
        peers.run("mmdebstrap", "--format=tar", "--variant=minbase", include, "bookworm", archive + ".new", timeout=900)
        os.rename(archive + ".new", archive)
    layout = os.path.join(CACHE, "layout")
    if not os.path.exists(layout):
        shutil.rmtree(layout + ".new", ignore_errors=True)
        split(archive, layout + ".new", layers=5)
        os.rename(layout + ".new", layout)
    return layout
