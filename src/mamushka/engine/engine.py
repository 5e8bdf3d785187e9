"""The engine: a library that ties images, storage, networks and runtimes together; there is no daemon.

Every method may be called by any number of processes at once. State is SQLite and files; each running
workload has a shim, a process forked from whoever started it, that outlives its starter.
"""

from __future__ import annotations

import os

from mamushka.engine.paths import Paths, default_roots
from mamushka.engine.state import State
from mamushka.errors import NotFound
from mamushka.linux.process import initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mamushka.engine.attach import Attached
    from mamushka.engine.checkpoints import Checkpoint
    from mamushka.engine.events import Event, Watch
    from mamushka.engine.images import Images
    from mamushka.engine.logs import Line
    from mamushka.engine.machines import Process
    from mamushka.engine.networks import Networks
    from mamushka.engine.settings import Limits, Restart, Settings
    from mamushka.engine.volumes import Volumes
    from mamushka.engine.workload import Workload
    from mamushka.runtime import CheckpointOptions, Exit, Runtime, Stats
    from mamushka.storage.layers import LayerStore
    from mamushka.storage.snapshot import SnapshotStore


class Engine:
    """One host's images, volumes, networks and workloads, under a data root and a run root.

    ``identifier`` parameters take a workload's name, its id, or a unique prefix of the id.
    Errors: NotFound, Conflict, Invalid, Unsupported, Denied, Unavailable (mamushka.errors).

    Opening one costs nothing: each room is opened when it is first asked for. For an ordinary user it makes this
    process root of the user's own user namespace (rootless.py), which it can only while it has a single thread.
    """

    def __init__(self, data_root: str = "", run_root: str = "") -> None:
        from mamushka.engine import gc

        if not (data_root and run_root):
            defaults = default_roots()
            data_root, run_root = data_root or defaults[0], run_root or defaults[1]
        self.paths = Paths(data_root, run_root)
        if os.geteuid() != 0 or not initial():
            from mamushka.engine.rootless import enter

            enter(self.paths.run)
        self.paths.make()
        self.state = State(self.paths.database, lambda state: gc.rebuild(self, state))
        self._rooms: dict[str, object] = {}

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.state.close()

    # rooms

    def _room(self, name: str, make: Callable[[], object]) -> object:
        if name not in self._rooms:
            self._rooms[name] = make()
        return self._rooms[name]

    @property
    def images(self) -> Images:
        """Images."""
        from mamushka.engine.images import Images

        def tell(action: str, id: str, attributes: Mapping[str, str]) -> None:
            self.tell("image", action, id, attributes)

        return self._room("images", lambda: Images(self.paths.data, users=self._image_users, tell=tell))  # type: ignore[return-value]

    @property
    def volumes(self) -> Volumes:
        """Volumes."""
        from mamushka.engine.volumes import Volumes

        def tell(action: str, name: str) -> None:
            self.tell("volume", action, name, {})

        return self._room("volumes", lambda: Volumes(f"{self.paths.data}/volumes", self._volume_users, tell))  # type: ignore[return-value]

    @property
    def networks(self) -> Networks:
        """Networks."""
        from mamushka.engine.networks import Networks

        return self._room("networks", lambda: Networks(self.state, self.paths, self.inspect))  # type: ignore[return-value]

    @property
    def layers(self) -> LayerStore:
        """Unpacked layers."""
        from mamushka.storage.layers import LayerStore

        return self._room("layers", lambda: LayerStore(f"{self.paths.data}/layers"))  # type: ignore[return-value]

    @property
    def snapshots(self) -> SnapshotStore:
        """Writable tops: the workloads' own directories."""
        from mamushka.storage.snapshot import SnapshotStore

        return self._room("snapshots", lambda: SnapshotStore(self.paths.workloads))  # type: ignore[return-value]

    def runtime(self, name: str) -> Runtime:
        """The wall of this name."""
        from mamushka.engine.runtimes import open_runtime

        return self._room(name, lambda: open_runtime(name, self.paths.containers, self.paths.made))  # type: ignore[return-value]

    def _image_users(self, image_id: str) -> list[str]:
        from mamushka.engine.workload import load

        return [row.id for row in self.state.rows() if load(row).image_id == image_id]

    def _volume_users(self) -> dict[str, list[str]]:
        from mamushka.engine.workload import load

        users: dict[str, list[str]] = {}
        for row in self.state.rows():
            for _, name in load(row).volumes if row.status != "removing" else ():
                users.setdefault(name, []).append(row.id)
        return users

    def tell(self, kind: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        """Add to the events."""
        from time import time

        self.state.add_event(time(), kind, action, id, dict(attributes))

    # for the engine's own files

    def settle(self) -> None:
        """Take over what shims have told."""
        from mamushka.engine.gc import settle

        settle(self)

    def at_end(self, id: str) -> Callable[[], Exit | None]:
        """What a connection does when its workload has ended: take over the end; the answer is the exit."""

        def end() -> Exit | None:
            from mamushka.engine.workload import load

            self.settle()
            try:
                return load(self.state.find(id)).exit
            except NotFound:
                return None

        return end

    def alive(self, workload: Workload) -> Workload:
        """The workload with what only the runtime knows of one that is just being started."""
        if workload.status != "starting":
            return workload
        from mamushka.values import replace

        try:
            state = self.runtime(workload.runtime).state(workload.id)
        except NotFound:
            return replace(workload, status="created")
        return replace(workload, status="running", pid=state.pid, started=state.created)

    def changes_watch(self) -> Watch:
        """Tells when workloads or events may have changed."""
        from mamushka.engine.events import Watch

        self.state.execute("select 1")  # there must be a log to watch
        return Watch(self.paths.data, self.paths.news)

    # workloads

    def create(self, settings: Settings) -> str:
        """Make a workload that does not run yet; its id (64 hex digits). The image must be present."""
        from mamushka.engine.creation import create

        return create(self, settings)

    def start(
        self,
        identifier: str,
        *,
        attach: bool = False,
        stdin: bool = False,
        size: tuple[int, int] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Attached | None:
        """Run it. With ``attach``, streams are connected before the first instruction, so nothing is missed.

        From a ``checkpoint`` it goes on where that was made.
        ``size`` is (rows, columns) of a terminal. The error of a program that cannot be executed is
        engine.CannotExecute (126) or engine.CommandNotFound (127), both Invalid.
        """
        from mamushka.engine import frames
        from mamushka.engine.starting import start

        flags = frames.OUTPUT | (frames.INPUT if stdin else 0) if attach else 0
        connection = start(self, identifier, flags, size, checkpoint)
        if connection is None and attach:
            return self.attach(identifier, stdin=stdin)
        if connection is not None and not attach:
            connection.close()
            return None
        return connection

    def checkpoint(
        self, identifier: str, name: str, options: CheckpointOptions | None = None, *, directory: str = ""
    ) -> Checkpoint:
        """Write a running workload down under a name of its own, or in ``directory``; it ends unless it may run on."""
        from mamushka.engine.checkpoints import create
        from mamushka.runtime import CheckpointOptions as Options

        return create(self, identifier, name, options or Options(), directory=directory)

    def checkpoints(self, identifier: str, *, directory: str = "") -> list[Checkpoint]:
        """A workload's checkpoints, oldest first."""
        from mamushka.engine.checkpoints import listing

        return listing(self, identifier, directory=directory)

    def snapshot(self, identifier: str, name: str = "", *, directory: str = "") -> Checkpoint:
        """A checkpoint that leaves it running, with all that others need to go on from it."""
        from mamushka.engine.forking import snapshot

        return snapshot(self, identifier, name, directory)

    def fork(self, identifier: str, count: int = 1, *, names: Sequence[str] = ()) -> list[str]:
        """Further workloads that go on from where this one is now, each as itself: their ids. It runs on."""
        from mamushka.engine.forking import fork

        return fork(self, identifier, count, names)

    def spawn(self, workload: Workload, made: Checkpoint, count: int = 1, *, names: Sequence[str] = ()) -> list[str]:
        """Further workloads that go on from a snapshot of this one: their ids."""
        from mamushka.engine.forking import spawn

        return spawn(self, workload, made, count, names)

    def attach(self, identifier: str, *, stdin: bool = True, logs: bool = False) -> Attached:
        """Connect to a running workload's streams."""
        from mamushka.engine.attaching import attach

        return attach(self, identifier, stdin=stdin, logs=logs)

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
        from mamushka.engine.exec import execute

        return execute(
            self,
            identifier,
            command,
            environment=environment,
            working_directory=working_directory,
            user=user,
            privileged=privileged,
            terminal=terminal,
            stdin=stdin,
            size=size,
            detach=detach,
        )

    def stop(self, identifier: str, *, timeout: float | None = None, signal: str = "") -> None:
        """Stop signal, then SIGKILL after ``timeout`` seconds (None: the workload's own; negative: never)."""
        from mamushka.engine.ending import stop

        stop(self, identifier, timeout, signal)

    def restart(self, identifier: str, *, timeout: float | None = None) -> None:
        """stop, then start."""
        self.stop(identifier, timeout=timeout)
        self.start(identifier)

    def kill(self, identifier: str, signal: str = "KILL") -> None:
        """Send a signal (name with or without SIG, or number) to the workload's first process."""
        from mamushka.engine.ending import kill

        kill(self, identifier, signal)

    def pause(self, identifier: str) -> None:
        """Freeze every process of it."""
        from mamushka.engine.changing import pause

        pause(self, identifier)

    def unpause(self, identifier: str) -> None:
        """Let them go on."""
        from mamushka.engine.changing import unpause

        unpause(self, identifier)

    def remove(self, identifier: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it and its writable top; ``force`` kills first, ``volumes`` takes anonymous ones along."""
        from mamushka.engine.ending import remove

        remove(self, identifier, force=force, volumes=volumes)

    def rename(self, identifier: str, name: str) -> None:
        """Give it another name."""
        from mamushka.engine.changing import rename

        rename(self, identifier, name)

    def update(self, identifier: str, *, limits: Limits | None = None, restart: Restart | None = None) -> None:
        """Change limits (zero fields stay as they are) and restart policy, also while it runs."""
        from mamushka.engine.changing import update

        update(self, identifier, limits, restart)

    def wait(self, identifier: str, *, condition: str = "not-running", timeout: float | None = None) -> Exit:
        """Block until not-running, next-exit or removed; TimeoutError after ``timeout``."""
        from mamushka.engine.ending import wait

        return wait(self, identifier, condition, timeout)

    def inspect(self, identifier: str) -> Workload:
        """Everything known about one workload."""
        from mamushka.engine.inspection import inspect

        return inspect(self, identifier)

    def workloads(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> list[Workload]:
        """Running workloads, or all, newest first. Filters are Docker's: id name label status ancestor …"""
        from mamushka.engine.inspection import workloads

        return workloads(self, all, filters or {})

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
        from mamushka.engine.logging import logs

        return logs(self, identifier, follow=follow, since=since, until=until, tail=tail, stdout=stdout, stderr=stderr)

    def stats(self, identifier: str) -> Stats:
        """Resource use now."""
        from mamushka.engine.ending import running

        workload = running(self, identifier)
        stats = self.runtime(workload.runtime).stats(workload.id)
        from mamushka.engine import traffic, wiring

        if workload.runtime == "vm":
            from mamushka.engine.machines import network_use

            return traffic.count(stats, network_use(self, workload))
        # With the host's network every counter would be the host's.
        return stats if wiring.mode(workload.settings) == "host" else traffic.add(stats, workload.pid)

    def processes(self, identifier: str) -> tuple[int, ...]:
        """Pids inside a running workload, as the host counts them."""
        from mamushka.engine.ending import running

        workload = running(self, identifier)
        return self.runtime(workload.runtime).processes(workload.id)

    def processes_inside(self, identifier: str) -> tuple[Process, ...] | None:
        """What runs in a machine, as its own kernel counts; None for a workload whose processes are the host's."""
        from mamushka.engine.ending import running

        workload = running(self, identifier)
        if workload.runtime != "vm":
            return None
        from mamushka.engine.machines import processes

        return processes(self, workload)

    def copy_out(self, identifier: str, path: str, *, name: str | None = None) -> Iterator[bytes]:
        """A tar stream of a file or directory inside; works on stopped workloads too.

        Its members start with ``name``, or the path's last name; with an empty one they are what the directory holds.
        """
        from mamushka.engine.copy import files

        return files(self, identifier).pack(path, name)

    def copy_in(self, identifier: str, path: str, archive: Iterable[bytes], *, keep_owner: bool = False) -> None:
        """Unpack a tar stream into a directory inside; no member can leave the workload's root."""
        from mamushka.engine.copy import files

        files(self, identifier).unpack(path, archive, None if keep_owner else (0, 0))

    def stat(self, identifier: str, path: str) -> Mapping[str, object]:
        """name, size, mode (st_mode), mtime, link target of a path inside, links of the last part not followed."""
        from mamushka.engine.copy import files

        return files(self, identifier).stat(path)

    def list_directory(self, identifier: str, path: str) -> list[Mapping[str, object]]:
        """What ``stat`` says of each entry of a directory inside; Invalid where it is not a directory."""
        from mamushka.engine.copy import files

        return files(self, identifier).entries(path)

    def remove_path(self, identifier: str, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory inside; ``recursive`` a whole tree, never through a link."""
        from mamushka.engine.copy import files

        files(self, identifier).remove(path, recursive=recursive)

    def changes(self, identifier: str) -> list[tuple[str, str]]:
        """What differs from the image: (A | C | D, path)."""
        from mamushka.engine.copy import files

        return files(self, identifier).changes()

    # the host

    def events(
        self, *, since: float = 0.0, until: float = 0.0, filters: Mapping[str, Sequence[str]] | None = None
    ) -> Iterator[Event]:
        """What happened, then what happens; ends at ``until`` where that is given."""
        from mamushka.engine.events import events

        return events(self, since, until, filters)

    def information(self) -> Mapping[str, object]:
        """Counts, roots, runtimes usable here and why each other one is not, kernel, cgroup layout, security."""
        from mamushka.engine.inspection import information

        return information(self)

    def disk_usage(self) -> Mapping[str, object]:
        """Sizes of images, layers, workloads and volumes, and how much each prune would free."""
        from mamushka.engine.inspection import disk_usage

        return disk_usage(self)

    def prune(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], int]:
        """Remove workloads that have ended: (ids, bytes freed)."""
        from mamushka.engine.ending import prune

        return prune(self, filters or {})

    def reconcile(self) -> None:
        """Repair what killed processes left: states, shims, mounts, networks, cgroups, staging directories."""
        from mamushka.engine.gc import reconcile

        reconcile(self)
