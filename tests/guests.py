"""A guest's first process without a guest: run for real, in namespaces of its own, over a Unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from mamushka.container import defaults
from mamushka.errors import GuestFault
from mamushka.linux.seccomp import Filter
from mamushka.machine.agent import Agent, Ended, SocketConnection, settings
from mamushka.machine.loop import Loop
from mamushka.runtime import Exit
from mamushka.spec.runtime import Config, Linux, Process
from tests import peers

PROGRAMS = (
    "cat chmod dd echo env false grep head hostname id kill ls mount ps readlink sh sleep stat stty touch true tty wc"
)
CGROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
PATH = "PATH=/bin"


def make_root(path: str) -> str:
    """A root filesystem: a static busybox under its usual names, and a user."""
    for name in ("bin", "etc", "tmp"):
        os.makedirs(f"{path}/{name}")
    shutil.copy(peers.find("busybox"), f"{path}/bin/busybox")
    for name in PROGRAMS.split():
        os.symlink("busybox", f"{path}/bin/{name}")
    with open(f"{path}/etc/passwd", "w") as file:
        file.write("root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n")
    return path


class Guest:
    """An agent in fresh namespaces, and the host's side of it; ``program`` is the agent's."""

    def __init__(self, program: str, rootfs: str) -> None:
        self.rootfs = rootfs
        self.faults: list[BaseException] = []
        self._directory = tempfile.mkdtemp(prefix="guest")
        self._program = program
        self._last = 0
        self._cgroup = ""

    def __enter__(self) -> Guest:
        self.loop = Loop("devices", self.faults.append)
        self.agent = Agent(self.loop, self._broken)
        path = f"{self._directory}/agent"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self.path = path
        self.loop.watch(self._listener.fileno(), self._called)
        self._make_cgroup()
        self.loop.start()
        words = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--ipc", "--uts"]
        self.process = subprocess.Popen([*words, self._program, "--socket", path], stderr=subprocess.PIPE)
        self.agent.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.said = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.agent.close()
        self.loop.stop()
        self._listener.close()
        self.loop.close()
        shutil.rmtree(self._directory)
        if self._cgroup:
            _remove(self._cgroup)

    def close_door(self) -> None:
        """Nobody can call any more. In the loop's thread."""
        self.loop.forget(self._listener.fileno())
        self._listener.close()

    def _called(self, _events: int) -> None:
        self.agent.channel.accept(SocketConnection(self.loop, self._listener.accept()[0]))

    def _broken(self, fault: GuestFault) -> None:
        self.faults.append(fault)

    def _make_cgroup(self) -> None:
        """cgroup v2, if only to freeze and to kill: this host may have its controllers elsewhere."""
        for mounted in CGROUPS:
            if os.path.exists(f"{mounted}/cgroup.procs") and not os.path.exists(f"{mounted}/tasks"):
                self._cgroup = self.agent.channel.cgroups = f"{mounted}/{os.path.basename(self._directory)}"
                os.mkdir(self._cgroup)
                return

    def name(self) -> int:
        """A process's name that no other has."""
        self._last += 1
        return self._last

    def process_of(self, *args: str, **fields: Any) -> Process:
        """A process; a single word is a shell script."""
        command = args if len(args) != 1 else ("/bin/sh", "-c", args[0])
        return Process(**{"args": command, "env": (PATH,), **fields})

    def create(
        self,
        process: Process,
        stdio: tuple[int, int, int] = (-1, -1, -1),
        *,
        linux: Linux | None = None,
        steps: Iterable[bytes] = (),
        hostname: str = "",
        filter: Filter | None = None,
    ) -> tuple[int, Ended]:
        """A container with the default mounts that stands before its program."""
        mounts = tuple(item for item in defaults.MOUNTS if item.type != "cgroup")
        config = Config("1.0.0", mounts=mounts, hostname=hostname, linux=linux or Linux())
        name = self.name()
        made = self.agent.create(
            name,
            settings.process_settings(process, filter),
            self.rootfs,
            [*settings.container_steps(config, {}), *steps],
            stdio=stdio,
            terminal=process.terminal,
        )
        return name, made

    def run(self, *args: str, given: bytes = b"", **more: Any) -> tuple[Exit, str]:
        """A container from its start to its end: how it ended, and all that it wrote."""
        ours = {key: more.pop(key) for key in ("linux", "steps", "hostname", "filter") if key in more}
        with _Streams(given) as streams:
            name, ended = self.create(self.process_of(*args, **more), streams.stdio, **ours)
            self.agent.start(name)
            exit = ended.result(20)
            self.agent.delete(name)
            return exit, streams.read()

    def exec(self, container: int, *args: str, given: bytes = b"", **more: Any) -> tuple[Exit, str]:
        """A further process in a container, to its end."""
        with _Streams(given) as streams:
            made = settings.process_settings(self.process_of(*args, **more))
            ended = self.agent.exec(self.name(), container, made, stdio=streams.stdio)
            return ended.result(20), streams.read()

    def sleeper(self) -> tuple[int, Ended]:
        """A container that stays."""
        name, ended = self.create(self.process_of("sleep", "1000"))
        self.agent.start(name)
        return name, ended

    def end(self, container: int, ended: Ended) -> Exit:
        """Kill and forget it."""
        self.agent.kill(container, signal.SIGKILL)
        exit = ended.result(10)
        self.agent.delete(container)
        return exit


def _remove(cgroup: str) -> None:
    """Once those who were killed with the agent are gone."""
    deadline = time.monotonic() + 10
    while True:
        try:
            for directory, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(directory)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class _Streams:
    """Files for a process's streams: what it writes is all there when its end was told."""

    def __init__(self, given: bytes) -> None:
        self._in, self._out = os.memfd_create("in"), os.memfd_create("out")
        os.write(self._in, given)
        os.lseek(self._in, 0, os.SEEK_SET)
        self.stdio = (self._in, self._out, self._out)

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: Sequence[Any]) -> None:
        os.close(self._in)
        os.close(self._out)

    def read(self) -> str:
        return os.pread(self._out, 1 << 24, 0).decode(errors="replace")
