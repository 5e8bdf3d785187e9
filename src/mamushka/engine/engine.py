"""The engine: a library that ties images, storage, networks and runtimes together; there is no daemon.

Every method may be called by any number of processes at once. State is SQLite and files; each running
workload has a shim, a process forked from whoever started it, that outlives its starter.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mamushka.engine.attach import Attached
    from mamushka.engine.events import Event
    from mamushka.engine.images import Images
    from mamushka.engine.logs import Line
    from mamushka.engine.networks import Networks
    from mamushka.engine.settings import Limits, Restart, Settings
    from mamushka.engine.volumes import Volumes
    from mamushka.engine.workload import Workload
    from mamushka.runtime import Exit, Stats


class Engine:
    """One host's images, volumes, networks and workloads, under a data root and a run root.

    ``identifier`` parameters take a workload's name, its id, or a unique prefix of the id.
    Errors: NotFound, Conflict, Invalid, Unsupported, Denied, Unavailable (mamushka.errors).
    """

    images: Images
    volumes: Volumes
    networks: Networks

    def __init__(self, data_root: str = "/var/lib/mamushka", run_root: str = "/run/mamushka") -> None:
        raise NotImplementedError

    def __enter__(self) -> Engine:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    # workloads

    def create(self, settings: Settings) -> str:
        """Make a workload that does not run yet; its id (64 hex digits). The image must be present."""
        raise NotImplementedError

    def start(
        self,
        identifier: str,
        *,
        attach: bool = False,
        stdin: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Attached | None:
        """Run it. With ``attach``, streams are connected before the first instruction, so nothing is missed.

        ``size`` is (rows, columns) of a terminal. The error of a program that cannot be executed is
        engine.CannotExecute (126) or engine.CommandNotFound (127), both Invalid.
        """
        raise NotImplementedError

    def attach(self, identifier: str, *, stdin: bool = True, logs: bool = False) -> Attached:
        """Connect to a running workload's streams."""
        raise NotImplementedError

    def exec(
        self,
        identifier: str,
        command: Sequence[str],
        *,
        environment: Sequence[str] = (),
        working_directory: str = "",
        user: str = "",
        privileged: bool = False,
        terminal: bool = False,
        stdin: bool = False,
        size: tuple[int, int] | None = None,
        detach: bool = False,
    ) -> Attached:
        """A further process in a running workload; its exit is Attached.wait(). Detached it just goes on."""
        raise NotImplementedError

    def stop(self, identifier: str, *, timeout: float | None = None, signal: str = "") -> None:
        """Stop signal, then SIGKILL after ``timeout`` seconds (None: the workload's own; negative: never)."""
        raise NotImplementedError

    def restart(self, identifier: str, *, timeout: float | None = None) -> None:
        """stop, then start."""
        raise NotImplementedError

    def kill(self, identifier: str, signal: str = "KILL") -> None:
        """Send a signal (name with or without SIG, or number) to the workload's first process."""
        raise NotImplementedError

    def pause(self, identifier: str) -> None:
        """Freeze every process of it."""
        raise NotImplementedError

    def unpause(self, identifier: str) -> None:
        """Let them go on."""
        raise NotImplementedError

    def remove(self, identifier: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it and its writable top; ``force`` kills first, ``volumes`` takes anonymous ones along."""
        raise NotImplementedError

    def rename(self, identifier: str, name: str) -> None:
        """Give it another name."""
        raise NotImplementedError

    def update(self, identifier: str, *, limits: Limits | None = None, restart: Restart | None = None) -> None:
        """Change limits (zero fields stay as they are) and restart policy, also while it runs."""
        raise NotImplementedError

    def wait(self, identifier: str, *, condition: str = "not-running", timeout: float | None = None) -> Exit:
        """Block until not-running, next-exit or removed; TimeoutError after ``timeout``."""
        raise NotImplementedError

    def inspect(self, identifier: str) -> Workload:
        """Everything known about one workload."""
        raise NotImplementedError

    def workloads(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> list[Workload]:
        """Running workloads, or all, newest first. Filters are Docker's: id name label status ancestor …"""
        raise NotImplementedError

    def logs(
        self,
        identifier: str,
        *,
        follow: bool = False,
        since: float = 0.0,
        until: float = 0.0,
        tail: int = -1,
        stdout: bool = True,
        stderr: bool = True,
    ) -> Iterator[Line]:
        """Log lines in order; with ``follow`` until the workload ends."""
        raise NotImplementedError

    def stats(self, identifier: str) -> Stats:
        """Resource use now."""
        raise NotImplementedError

    def processes(self, identifier: str) -> tuple[int, ...]:
        """Pids inside a running workload, as the host counts them."""
        raise NotImplementedError

    def copy_out(self, identifier: str, path: str) -> Iterator[bytes]:
        """A tar stream of a file or directory inside; works on stopped workloads too."""
        raise NotImplementedError

    def copy_in(self, identifier: str, path: str, archive: Iterable[bytes], *, keep_owner: bool = False) -> None:
        """Unpack a tar stream into a directory inside; no member can leave the workload's root."""
        raise NotImplementedError

    def stat(self, identifier: str, path: str) -> Mapping[str, object]:
        """name, size, mode (st_mode), mtime, link target of a path inside, links of the last part not followed."""
        raise NotImplementedError

    def list_directory(self, identifier: str, path: str) -> list[Mapping[str, object]]:
        """What ``stat`` says of each entry of a directory inside; Invalid where it is not a directory."""
        raise NotImplementedError

    def remove_path(self, identifier: str, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory inside; ``recursive`` a whole tree, never through a link."""
        raise NotImplementedError

    def changes(self, identifier: str) -> list[tuple[str, str]]:
        """What differs from the image: (A | C | D, path)."""
        raise NotImplementedError

    # the host

    def events(
        self, *, since: float = 0.0, until: float = 0.0, filters: Mapping[str, Sequence[str]] | None = None
    ) -> Iterator[Event]:
        """What happened, then what happens; ends at ``until`` where that is given."""
        raise NotImplementedError

    def information(self) -> Mapping[str, object]:
        """Counts, roots, runtimes usable here and why each other one is not, kernel, cgroup layout, security."""
        raise NotImplementedError

    def disk_usage(self) -> Mapping[str, object]:
        """Sizes of images, layers, workloads and volumes, and how much each prune would free."""
        raise NotImplementedError

    def prune(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], int]:
        """Remove workloads that have ended: (ids, bytes freed)."""
        raise NotImplementedError

    def reconcile(self) -> None:
        """Repair what killed processes left: states, shims, mounts, networks, cgroups, staging directories."""
        raise NotImplementedError
