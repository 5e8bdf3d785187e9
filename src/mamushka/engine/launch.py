"""From a bundle and layers to a process with streams: what a shim does at the first start and at each restart."""

from __future__ import annotations

import os

from mamushka.engine import frames
from mamushka.runtime import Bundle, CheckpointOptions, Disks, Started, Stdio
from mamushka.spec.runtime import IDMapping
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.runtime import Runtime
    from mamushka.spec.runtime import Config, Process


@value
class Launch:
    """What is needed to run a workload again and again; the parsed bundle apart."""

    id: str
    runtime: str
    containers: str  # the runtime's state directory
    made: str  # where it keeps what it makes once for many
    bundle: str
    lowers: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""
    mappings: tuple[IDMapping, ...] = ()  # of its users, where they are its own
    disks: Disks = Disks()  # of a machine that mounts its layers itself
    volatile: bool = False  # nobody will ask for what it wrote: no need to wait for the disk
    terminal: bool = False
    stdin: bool = False
    state: str = ""  # the directory of a checkpoint to go on from, the first time
    restoring: CheckpointOptions = CheckpointOptions()


@value
class Streams:
    """A started process and our sides of its streams."""

    started: Started
    outputs: dict[int, int]
    stdin: int
    console: int


def mount(launch: Launch) -> int:
    """A detached mount of the layers."""
    from mamushka.storage import overlay

    users = -1
    if launch.mappings:
        from mamushka.container.idmap import user_namespace

        users = user_namespace(launch.mappings, launch.mappings)
    try:
        return overlay.mount(
            launch.lowers, upper=launch.upper, work=launch.work, volatile=launch.volatile, id_map=users
        )
    finally:
        if users >= 0:
            os.close(users)


def launch(runtime: Runtime, launch: Launch, config: Config, root: int = -1) -> Streams:
    """Run the bundle, or go on from a state, on ``root`` or a fresh mount of the layers; the descriptor is closed."""
    if launch.disks.images:
        if root >= 0:
            os.close(root)
        with Ends(launch.terminal, launch.stdin) as ends:
            bundle = Bundle(launch.bundle, config, launch.disks)
            if launch.state:
                made = runtime.restore(launch.id, bundle, ends.stdio, launch.state, launch.restoring)
                return ends.keep(made)
            return ends.keep(runtime.run(launch.id, bundle, ends.stdio))
    if root < 0:
        root = mount(launch)
    try:
        with Ends(launch.terminal, launch.stdin) as ends:
            bundle = Bundle(launch.bundle, config)
            if launch.state:
                made = runtime.restore(launch.id, bundle, ends.stdio, launch.state, launch.restoring, root=root)
                return ends.keep(made)
            return ends.keep(runtime.run(launch.id, bundle, ends.stdio, root=root))
    finally:
        os.close(root)


def launch_exec(runtime: Runtime, id: str, process: Process, *, stdin: bool) -> Streams:
    """Run a further process in a running workload."""
    with Ends(process.terminal, stdin) as ends:
        return ends.keep(runtime.exec(id, process, ends.stdio))


class Ends:
    """The pipes of one process: its ends while it is being started, ours afterwards.

    The write ends that the process gets are open for reading too. So a pipe has a reader as long as the process has
    it, and a process whose shim was killed waits when the pipe is full, instead of dying of SIGPIPE.
    """

    def __init__(self, terminal: bool, stdin: bool) -> None:
        self._terminal = terminal
        self._theirs: list[int] = []
        self._ours: list[int] = []
        self._stdin = -1
        null = self._their(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        if terminal:
            self.stdio = Stdio(null, null, null)
            return
        first = null
        if stdin:
            first, self._stdin = os.pipe()
            self._their(first)
        self.stdio = Stdio(first, self._output(), self._output())

    def _their(self, fd: int) -> int:
        self._theirs.append(fd)
        return fd

    def _output(self) -> int:
        reader, writer = os.pipe()
        self._ours.append(reader)
        os.close(writer)
        return self._their(os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_CLOEXEC))

    def keep(self, started: Started) -> Streams:
        """Our ends, now that the process has its own."""
        if self._terminal:
            self._ours = [started.console]
            self._stdin = os.dup(started.console)
        kinds = (frames.OUT, frames.ERR)
        outputs = dict(zip(self._ours, kinds, strict=False))
        streams = Streams(started, outputs, self._stdin, started.console)
        self._ours, self._stdin = [], -1
        return streams

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._theirs, *self._ours, self._stdin):
            if fd >= 0:
                os.close(fd)
