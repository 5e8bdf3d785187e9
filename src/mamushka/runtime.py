"""The narrow waist: what every wall takes and answers, whoever drives it.

A runtime is given a bundle (a root filesystem and a ``config.json``), open descriptors and nothing else.
Its verbs are those of the OCI runtime-spec (runtime.md), its states those of ``State.status``.
"""

from __future__ import annotations

from mamushka.errors import Conflict, Invalid
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Protocol

    from mamushka.spec.runtime import Config, Process, Resources

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"


class CommandNotFound(Invalid):
    """The program does not exist behind the wall. A shell would answer 127."""


class CannotExecute(Invalid):
    """The program exists and cannot be executed. A shell would answer 126."""


class NotRunning(Conflict):
    """The container has ended, or is just ending: nothing can be done to it or in it any more."""


@value
class Image:
    """A layer as the image of a file system: ``mapped`` as memory, or else given as a disk."""

    path: str
    mapped: bool


@value
class Disks:
    """A root for a wall that has a kernel of its own: layers, uppermost first, and the disk of what is written.

    They are the host's paths, and no word of ``config.json``: whoever only wrote a bundle can name none.
    """

    images: tuple[Image, ...] = ()
    top: str = ""
    user_attributes: bool = False  # whether overlayfs's own attributes are those that any user may set
    mode: int = 0o755  # of the root directory, where the top is new
    uid: int = 0
    gid: int = 0


@value
class Bundle:
    """A directory and its parsed ``config.json``; relative paths in the config start at ``path``.

    With ``disks`` they are the root, and what the config says of it counts no further than ``readonly``.
    """

    path: str
    config: Config
    disks: Disks = Disks()


@value
class Stdio:
    """The three descriptors a process is born with. With a terminal they are not used: see Started.console."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2


@value
class State:
    """What the runtime knows of a container. runtime-spec, runtime.md#state."""

    id: str
    status: str
    pid: int
    bundle: str
    annotations: Mapping[str, str] = EMPTY
    created: float = 0.0  # seconds since the epoch


@value
class Exit:
    """How a process ended: a code, or a signal. ``oom_killed`` where the kernel's memory limit did it."""

    code: int = 0
    signal: int = 0
    oom_killed: bool = False

    @property
    def status(self) -> int:
        """As a shell reports it: the code, or 128 + signal."""
        return 128 + self.signal if self.signal else self.code


@value
class Started:
    """A process behind the wall, a child of the caller, which must reap it.

    ``pidfd`` and ``console`` (the terminal's master side, -1 without one) belong to the caller.
    """

    pid: int
    pidfd: int
    console: int = -1


@value
class Stats:
    """Resource use of a container at one moment; bytes, seconds and counts. Zero where not accounted."""

    cpu: float = 0.0
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    cpu_throttled: float = 0.0
    memory: int = 0
    memory_limit: int = 0
    memory_peak: int = 0
    memory_cache: int = 0
    pids: int = 0
    pids_limit: int = 0
    io_read: int = 0
    io_written: int = 0
    net_received: int = 0  # over all links but the loopback; the engine counts them, a wall need not
    net_sent: int = 0
    oom_kills: int = 0


@value
class CheckpointOptions:
    """How a running workload is written down and made to run again; one value for both directions.

    The first group means something to every wall. The rest says what becomes of the ties that processes of a
    container have to the outside; a wall without such ties passes it over. Names are criu's, see criu(8).
    """

    work: str = ""  # a directory for logs; the state's own where it is empty
    parent: str = ""  # an earlier state, relative to this one: of the memory only what changed since is written
    pre_dump: bool = False  # the memory alone, while it runs on; the next state names this one as its parent
    leave_running: bool = False
    page_server: str = ""  # HOST:PORT that takes the memory
    lazy_pages: bool = False  # the memory follows when it is touched
    auto_dedup: bool = False  # what a later state has, the earlier one need not keep
    status_fd: int = -1  # told with a zero byte when the memory can be asked for
    memory: int = -1  # to restore with: a descriptor of the memory, where it is not in the state's directory

    tcp_established: bool = False
    tcp_skip_in_flight: bool = False
    tcp_close: bool = False
    ext_unix_sk: bool = False
    shell_job: bool = False
    file_locks: bool = False
    link_remap: bool = False
    empty_network: bool = False  # an empty network namespace instead of the one that was
    cgroups: str = ""  # what of the cgroups is kept: ignore, soft, full, strict
    network_lock: str = ""  # iptables, nftables, skip
    lsm_profile: str = ""
    lsm_mount_context: str = ""


if TYPE_CHECKING:

    class Entrance(Protocol):
        """Doors of cgroup v1 that a child walks through by writing 0 to each; none on v2."""

        doors: tuple[int, ...]

        def close(self) -> None:
            """Close the descriptors."""

    class Cgroup(Protocol):
        """Where the kernel counts and limits what processes use, as a wall that is given one needs it."""

        @property
        def place(self) -> str:
            """What a record says to find it again."""

        def create(self, resources: Resources) -> None:
            """Make it with its limits; on failure nothing is left."""

        def set(self, resources: Resources) -> None:
            """Change limits; what is absent stays."""

        def descriptor(self) -> int:
            """Its directory for CLONE_INTO_CGROUP, the caller's to close; -1 where that cannot be."""

        def entrance(self) -> Entrance:
            """Where there is no such directory, or not alone."""

        def adoption(self) -> Callable[[int], None] | None:
            """How a process is moved in that neither can be born there nor walk in; None where it can."""

        def settle(self) -> None:
            """The first process is inside."""

        def processes(self) -> tuple[int, ...]:
            """The pids in it and below."""

        def stats(self) -> Stats:
            """What was used."""

        def usage(self) -> Any:
            """All that is counted, in the kernel's own terms."""

        def watch_oom(self) -> Any:
            """Word of kills for want of memory, to be closed; None where nobody counts memory."""

        def freeze(self) -> None:
            """Let nothing in it run."""

        def thaw(self) -> None:
            """Let it run again."""

        def frozen(self) -> bool:
            """Whether nothing in it runs."""

        def kill(self) -> None:
            """End every process in it."""

        def remove(self) -> None:
            """Remove it; harmless when it is gone."""

    class Cgroups(Protocol):
        """Whoever makes and finds cgroups. Decision 0050."""

        def choose(self, manager: str, cgroups_path: str, id: str, annotations: Mapping[str, str]) -> Cgroup:
            """The cgroup of a new workload; ``manager`` is cgroupfs, systemd or disabled."""

        def open_cgroup(self, place: str) -> Cgroup:
            """An existing one, by what the record says."""

        def above(self, place: str) -> list[str]:
            """The directories above one that hold workloads' cgroups alone; the deepest first."""

    class Runtime(Protocol):
        """A wall. Every call names the container by its id; state lives on disk, so any process may call."""

        name: str

        def create(
            self, id: str, bundle: Bundle, stdio: Stdio, *, root: int = -1, preserve: tuple[int, ...] = ()
        ) -> Started:
            """Build the container and stop just before its program; ``start`` lets it go.

            ``root`` is a detached mount (open_tree, fsmount) to use instead of the config's root.path; it
            is consumed by the container's mount namespace, the descriptor stays the caller's. ``preserve``
            are further descriptors that the program inherits, as 3, 4, ….
            """

        def run(
            self, id: str, bundle: Bundle, stdio: Stdio, *, root: int = -1, preserve: tuple[int, ...] = ()
        ) -> Started:
            """create and start in one go, without the gate between them."""

        def start(self, id: str) -> None:
            """Let a created container's program run."""

        def state(self, id: str) -> State:
            """The present state, taken from the kernel. NotFound for an unknown id."""

        def list(self) -> Iterable[State]:
            """All containers of this runtime's state directory."""

        def kill(self, id: str, signal: int, *, all: bool = False) -> None:
            """Signal the container's init, or every process in it."""

        def delete(self, id: str, *, force: bool = False) -> None:
            """Remove what create made; Conflict while it runs, unless forced. Repeating it is harmless."""

        def exec(self, id: str, process: Process, stdio: Stdio, *, preserve: tuple[int, ...] = ()) -> Started:
            """A further process inside a running container."""

        def pause(self, id: str) -> None:
            """Freeze all processes."""

        def resume(self, id: str) -> None:
            """Thaw them."""

        def processes(self, id: str) -> tuple[int, ...]:
            """The pids inside, as the host counts them."""

        def open_root(self, id: str) -> int:
            """The root filesystem as it is now, a directory and the caller's to close; NotFound when it has ended."""

        def update(self, id: str, resources: Resources) -> None:
            """Change limits while it runs."""

        def stats(self, id: str) -> Stats:
            """Resource use now."""

        def checkpoint(self, id: str, directory: str, options: CheckpointOptions = ...) -> None:
            """Write a running workload's state into a directory, which is made where missing.

            It has then ended, killed, and only ``delete`` is left to do, unless the options let it run on. When it
            fails the workload runs on.
            """

        def restore(
            self,
            id: str,
            bundle: Bundle,
            stdio: Stdio,
            directory: str,
            options: CheckpointOptions = ...,
            *,
            root: int = -1,
        ) -> Started:
            """Like ``run``, but it goes on from a state; the bundle gives what is outside of it: root, mounts, limits.

            When it fails nothing is left, and the state can be tried again.
            """

        def features(self) -> Mapping[str, object]:
            """What this wall can do here. runtime-spec, features.md."""
