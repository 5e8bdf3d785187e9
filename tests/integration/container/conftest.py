"""Containers without an engine: a runtime with a state directory of its own, and a busybox for a root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mamushka.container import defaults
from mamushka.container.cgroups.cgroup import CGROUPFS
from mamushka.container.runtime import ContainerRuntime
from mamushka.container.seccomp import default_profile
from mamushka.runtime import Bundle, Started, Stdio
from mamushka.spec import runtime as spec
from mamushka.spec.runtime import Config, Linux, Mount, Process, Root
from mamushka.values import replace
from tests import peers

PROGRAMS = "cat chmod echo env false grep hostname id kill ls mount ps readlink sh sleep stat stty touch true tty wc"


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


@pytest.fixture
def rootfs(tmp_path: Any) -> str:
    """A root with a static busybox under its usual names, and a user."""
    peers.need("busybox")
    path = str(tmp_path / "rootfs")
    for name in ("bin", "etc", "tmp"):
        os.makedirs(f"{path}/{name}")
    shutil.copy(peers.find("busybox"), f"{path}/bin/busybox")
    for name in PROGRAMS.split():
        os.symlink("busybox", f"{path}/bin/{name}")
    with open(f"{path}/etc/passwd", "w") as file:
        file.write("root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n")
    return path


class Ground:
    """A runtime, a root, and the words to run something in it."""

    def __init__(self, state: str, rootfs: str, name: str, cgroups: str = CGROUPFS) -> None:
        self.runtime = ContainerRuntime(state, cgroups=cgroups)
        self.state, self.rootfs, self.name = state, rootfs, name
        self.made: list[Started] = []

    def config(
        self, *args: str, linux: dict[str, Any] | None = None, mounts: Sequence[Mount] = (), **process: Any
    ) -> Config:
        """The default wall around a command; a single word is a shell script."""
        command = args if len(args) != 1 else ("/bin/sh", "-c", args[0])
        own = Linux(
            cgroups_path=f"/mamushka-test/{self.name}" if self.runtime.cgroups == CGROUPFS else "",
            namespaces=defaults.NAMESPACES,
            masked_paths=defaults.MASKED_PATHS,
            readonly_paths=defaults.READONLY_PATHS,
            seccomp=default_profile(defaults.CAPABILITY_NAMES),
        )
        given: dict[str, Any] = {
            "env": ("PATH=/bin",),
            "capabilities": defaults.CAPABILITIES,
            "no_new_privileges": True,
        }
        return Config(
            "1.2.0",
            Process(args=command, **{**given, **process}),
            Root(self.rootfs),
            "box",
            mounts=(*defaults.MOUNTS, *mounts),
            linux=replace(own, **(linux or {})),
        )

    def bundle(self, config: Config) -> Bundle:
        """A bundle of this config."""
        return Bundle(os.path.dirname(self.rootfs), config)

    def run(self, config: Config, **options: Any) -> tuple[int, str]:
        """Run to the end: (exit status as waitpid has it, negative for a signal; output of both streams)."""
        with Output() as output:
            started = self.runtime.run(
                self.name, self.bundle(config), Stdio(0, output.writing, output.writing), **options
            )
            try:
                code = reap(started)
            finally:
                self.runtime.delete(self.name, force=True)
            return code, output.text()

    def output(self, config: Config) -> str:
        """What a command that succeeds says."""
        code, text = self.run(config)
        assert code == 0, text
        return text

    def runc(self, config: Config) -> str:
        """What the same command says below runc."""
        peers.need("runc")
        bundle = f"{os.path.dirname(self.rootfs)}/runc"
        os.makedirs(bundle, exist_ok=True)
        with open(f"{bundle}/config.json", "wb") as file:
            file.write(spec.dump(config))
        name = f"{self.name}-runc"
        runc = (peers.find("runc"), "--root", f"{bundle}/state")
        with open(f"{bundle}/output", "w+") as output:
            subprocess.run([*runc, "create", "--bundle", bundle, name], stdout=output, stderr=output, timeout=30)
            try:
                peers.run(*runc, "start", name, timeout=30)
                for _ in range(200):
                    if b'"stopped"' in peers.run(*runc, "state", name, timeout=30):
                        break
                    time.sleep(0.05)
            finally:
                subprocess.run([*runc, "delete", "--force", name], timeout=30)
            output.seek(0)
            return output.read()

    def create(self, config: Config, output: int = 1) -> Started:
        """Create and remember, to be cleaned up."""
        return self._keep(self.runtime.create(self.name, self.bundle(config), Stdio(0, output, output)))

    def start(self, config: Config, output: int = 1) -> Started:
        """Run in the background."""
        return self._keep(self.runtime.run(self.name, self.bundle(config), Stdio(0, output, output)))

    def _keep(self, started: Started) -> Started:
        self.made.append(started)
        return started

    def exec(self, *args: str, **process: Any) -> tuple[int, str]:
        """Execute to the end in the running container."""
        given: dict[str, Any] = {"env": ("PATH=/bin",), "capabilities": defaults.CAPABILITIES}
        command = args if len(args) != 1 else ("/bin/sh", "-c", args[0])
        with Output() as output:
            stdio = Stdio(0, output.writing, output.writing)
            started = self.runtime.exec(self.name, Process(args=command, **{**given, **process}), stdio)
            return reap(started), output.text()

    def clean(self) -> None:
        """Remove whatever is left."""
        for state in list(self.runtime.list()):
            self.runtime.delete(state.id, force=True)
        for started in self.made:
            for descriptor in (started.pidfd, started.console):
                if descriptor >= 0:
                    os.close(descriptor)
            try:
                os.waitpid(started.pid, 0)
            except ChildProcessError:
                pass


class Output:
    """A pipe for what a container says; it must fit in one."""

    def __enter__(self) -> Output:
        self.reading, self.writing = os.pipe()
        return self

    def text(self) -> str:
        """All of it; ends the writing."""
        os.close(self.writing)
        self.writing = -1
        parts = []
        while part := os.read(self.reading, 65536):
            parts.append(part)
        return b"".join(parts).decode()

    def __exit__(self, *_: object) -> None:
        os.close(self.reading)
        if self.writing >= 0:
            os.close(self.writing)


def reap(started: Started) -> int:
    """Wait, and close what belongs to the caller."""
    _, status = os.waitpid(started.pid, 0)
    os.close(started.pidfd)
    return os.waitstatus_to_exitcode(status)


@pytest.fixture
def ground(tmp_path: Any, rootfs: str, unique: str) -> Iterator[Ground]:
    """Ground of the test's own."""
    made = Ground(str(tmp_path / "state"), rootfs, unique)
    yield made
    made.clean()
    from mamushka.container.cgroups import prune

    prune("/mamushka-test")
