"""A box: an image's program behind a wall, with everything one does to it from Python.

A box belongs to no process: it is found again by name or id (``get``) from anywhere. The ``with`` block removes it
at its end; without the block it stays until it is removed. A lifetime (``timeout=``) is watched by the process
that made the box, and ends with that process.
"""

from __future__ import annotations

import threading

from mamushka.errors import Conflict, NotFound
from mamushka.interfaces.sdk import ask
from mamushka.interfaces.sdk.files import Files
from mamushka.interfaces.sdk.host import default_engine, ensure
from mamushka.interfaces.sdk.process import Process
from mamushka.interfaces.sdk.result import KILLED, TIMEOUT, judge, runtime_of
from mamushka.interfaces.sdk.streams import UNREAD_MAX
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Unpack

    from mamushka.engine.engine import Engine
    from mamushka.engine.logs import Line
    from mamushka.engine.workload import Published, Workload
    from mamushka.interfaces.sdk.ask import Asked
    from mamushka.interfaces.sdk.result import Completed, Runtime, Verdict
    from mamushka.interfaces.sdk.snapshot import Snapshot
    from mamushka.runtime import Stats

_NO_LONGER = ("exited", "dead", "removing")


def run(
    image: str,
    *command: str,
    timeout: float | None = None,
    pull: str = "missing",
    engine: Engine | None = None,
    **asked: Unpack[Asked],
) -> Box:
    """Start a box from an image, with the image's own command unless one is given.

    Its standard input is held open, so an image whose command is a shell or an interpreter waits for ``exec``.
    The box is killed ``timeout`` seconds after its start. ``runtime`` is an order of preference; what is not
    listed is never used. All settings: ``mamushka.interfaces.sdk.ask.Asked``.

    >>> with mamushka.run("python:3.12", memory="1g", pids=100, network="none") as box:
    ...     box.exec("python", "-c", "print(6 * 7)").stdout
    '42\\n'
    """
    engine = engine or default_engine()
    if not asked.get("rootfs"):
        ensure(engine, image, asked.get("platform", ""), pull)
    id = engine.create(replace(ask.settings(image, command, asked), stdin=True))
    try:
        engine.start(id)
    except BaseException:
        engine.remove(id, force=True, volumes=True)
        raise
    box = Box(engine, id)
    if timeout is not None:
        box.expire(timeout)
    return box


def once(
    image: str,
    *command: str,
    input: bytes | str = b"",
    timeout: float | None = None,
    output_limit: int = UNREAD_MAX,
    pull: str = "missing",
    engine: Engine | None = None,
    **asked: Unpack[Asked],
) -> Completed:
    """Run one command in a box of its own, and return all that it wrote and how it ended.

    >>> mamushka.once("busybox", "sh", "-c", "exit 3").verdict
    Verdict(by='exited', code=3, signal=0, limit='')
    """
    box, process = begin(image, command, pull, bool(input), engine or default_engine(), asked)
    with box, process:
        return process.complete(_bytes(input), timeout, output_limit)


def begin(
    image: str, command: tuple[str, ...], pull: str, stdin: bool, engine: Engine, asked: Asked
) -> tuple[Box, Process]:
    """A started box and its first process, attached before its first instruction."""
    if not asked.get("rootfs"):
        ensure(engine, image, asked.get("platform", ""), pull)
    settings = replace(ask.settings(image, command, asked), stdin=stdin)
    id = engine.create(settings)
    try:
        attached = engine.start(id, attach=True, stdin=stdin)
        assert attached is not None
    except BaseException:
        engine.remove(id, force=True, volumes=True)
        raise
    return Box(engine, id), Process(attached, command or (image,), memory=settings.limits.memory)


def get(identifier: str, *, engine: Engine | None = None) -> Box:
    """The box of that name, id, or unique prefix of an id, whoever started it. NotFound."""
    engine = engine or default_engine()
    return Box(engine, engine.inspect(identifier).id)


def boxes(*, all: bool = False, labels: Mapping[str, str] | None = None, engine: Engine | None = None) -> list[Box]:
    """The boxes that run, or all there are, newest first; ``labels`` must all be there."""
    engine = engine or default_engine()
    filters = {"label": [f"{name}={item}" for name, item in (labels or {}).items()]}
    return [Box(engine, found.id) for found in engine.workloads(all=all, filters=filters if labels else None)]


class Box:
    """One workload. A context manager that removes it, with everything that it was, at the end."""

    def __init__(self, engine: Engine, id: str) -> None:
        self.id = id
        self.files = Files(engine, id, self._working_directory)
        self._engine = engine
        self._asked = self._limit = ""
        self._last: Workload | None = None  # what it was when it was removed
        self._clock: threading.Timer | None = None

    def __repr__(self) -> str:
        return f"<mamushka.Box {self.id[:12]}>"

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    # programs

    def exec(
        self,
        *command: str,
        input: bytes | str = b"",
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        timeout: float | None = None,
        output_limit: int = UNREAD_MAX,
    ) -> Completed:
        """Run a command in the box to its end. A failing command is a result; ``.check()`` makes it an error.

        After ``timeout`` seconds, or more than ``output_limit`` bytes on a stream, it is killed, and the verdict
        says so. CommandNotFound and CannotExecute (mamushka.runtime) when there is no such program.
        """
        with self.popen(*command, environment=environment, working_directory=working_directory, user=user) as process:
            return process.complete(_bytes(input), timeout, output_limit)

    def shell(self, script: str, *, timeout: float | None = None, input: bytes | str = b"") -> Completed:
        """Run a script with the box's ``/bin/sh``.

        >>> box.shell("echo $HOME | tr a-z A-Z").stdout
        '/ROOT\\n'
        """
        return self.exec("/bin/sh", "-c", script, timeout=timeout, input=input)

    def popen(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        terminal: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Process:
        """Start a command in the box and talk to it while it runs; ``size`` is (rows, columns) of its terminal."""
        attached = self._engine.exec(
            self.id,
            command,
            environment=tuple(f"{name}={item}" for name, item in (environment or {}).items()),
            working_directory=working_directory,
            user=user,
            terminal=terminal,
            stdin=True,
            size=size,
        )
        return Process(attached, command, memory=self.inspect().settings.limits.memory)

    def attach(self, *, logs: bool = False) -> Process:
        """The box's own first process and its streams; ``logs`` repeats what it wrote before."""
        seen = self.inspect()
        attached = self._engine.attach(self.id, stdin=seen.settings.stdin, logs=logs)
        return Process(attached, seen.command, memory=seen.settings.limits.memory)

    # what it is

    def inspect(self) -> Workload:
        """Everything that is known; after the removal, what was known last."""
        return self._last or self._engine.inspect(self.id)

    @property
    def name(self) -> str:
        """Its name."""
        return self.inspect().name

    @property
    def status(self) -> str:
        """created, running, paused, restarting, exited, dead or removing."""
        return self.inspect().status

    @property
    def runtime(self) -> Runtime:
        """The wall that is really used, and why this one."""
        return runtime_of(self.inspect())

    @property
    def verdict(self) -> Verdict | None:
        """Who ended it and with which limit; None while it runs."""
        seen = self.inspect()
        if seen.exit is None or seen.status not in _NO_LONGER:
            return None
        return judge(seen.exit, asked=self._asked, limit=self._limit, memory=seen.settings.limits.memory)

    @property
    def ports(self) -> Sequence[Published]:
        """The ports on which the host answers for it."""
        return self.inspect().published

    def port(self, inside: int, protocol: str = "tcp") -> int:
        """The host's port for a port inside. NotFound when it is not published."""
        for published in self.ports:
            if (published.port, published.protocol) == (inside, protocol):
                return published.host_port
        raise NotFound(f"the port {inside}/{protocol} is not published", hint=f"run(…, ports=[{inside}])")

    @property
    def address(self) -> str:
        """Its address in its first network, empty without one."""
        return next((place.address for place in self.inspect().connections), "")

    def logs(self, *, tail: int = -1, stdout: bool = True, stderr: bool = True) -> str:
        """What its first process has written, or the last ``tail`` lines of it."""
        lines = self._engine.logs(self.id, tail=tail, stdout=stdout, stderr=stderr)
        return b"".join(line.data for line in lines).decode("utf-8", "surrogateescape")

    def follow(self, *, tail: int = -1) -> Iterator[Line]:
        """The log line by line, and then each new one, until the box ends."""
        return self._engine.logs(self.id, follow=True, tail=tail)

    def stats(self) -> Stats:
        """Its use of processor, memory, pids and disk now."""
        return self._engine.stats(self.id)

    # its life

    def wait(self, timeout: float | None = None) -> Verdict:
        """Block until it has ended. TimeoutError after ``timeout`` seconds."""
        exit = self._engine.wait(self.id, timeout=timeout)
        return self.verdict or judge(exit, asked=self._asked, limit=self._limit)

    def start(self, *, checkpoint: str = "") -> None:
        """Start it again after it has ended, or let it go on from one of its checkpoints."""
        made = None
        if checkpoint:
            from mamushka.engine.checkpoints import find

            made = find(self._engine, self.id, checkpoint)
        self._asked = self._limit = ""
        self._engine.start(self.id, checkpoint=made)

    def checkpoint(self, name: str, *, leave_running: bool = False, tcp_established: bool = False) -> None:
        """Write it down, memory and all, under a name of its own. It has ended then, unless it is left running.

        ``start(checkpoint=name)`` goes on from there. Unsupported where criu or the kernel cannot.
        """
        from mamushka.runtime import CheckpointOptions

        options = CheckpointOptions(leave_running=leave_running, tcp_established=tcp_established)
        self._engine.checkpoint(self.id, name, options)
        if not leave_running:
            self._asked = self._asked or KILLED

    def snapshot(self, name: str = "", *, directory: str = "") -> Snapshot:
        """Write it down, memory, disk and all, for further boxes to go on from; it runs on.

        Unsupported, with the reason, where it cannot be: a machine needs its layers as disks and no volumes, a
        container criu.

        >>> snapshot = box.snapshot()
        >>> others = [snapshot.start() for _ in range(3)]
        """
        from mamushka.interfaces.sdk.snapshot import Snapshot

        made = self._engine.snapshot(self.id, name, directory=directory)
        return Snapshot(self._engine, self.inspect(), made)

    def fork(self, count: int = 1, *, names: Sequence[str] = ()) -> list[Box]:
        """Further boxes that go on from where this one is now, each as itself; it runs on.

        What is in its memory is in theirs: secrets too, and random numbers that a program has drawn already.
        Unsupported as ``snapshot``.

        >>> left, right = box.fork(2)
        """
        return [Box(self._engine, id) for id in self._engine.fork(self.id, count, names=names)]

    def stop(self, timeout: float | None = None) -> None:
        """Stop signal, then SIGKILL after ``timeout`` seconds (None: the box's own, 10)."""
        self._asked = self._asked or KILLED
        self._engine.stop(self.id, timeout=timeout)

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to its first process."""
        self._asked = self._asked or KILLED
        self._engine.kill(self.id, signal)

    def pause(self) -> None:
        """Freeze every process in it."""
        self._engine.pause(self.id)

    def resume(self) -> None:
        """Let them go on."""
        self._engine.unpause(self.id)

    def expire(self, timeout: float) -> None:
        """Kill it ``timeout`` seconds from now, as long as this process lives; replaces an earlier call's."""
        if self._clock is not None:
            self._clock.cancel()
        self._clock = threading.Timer(timeout, self._expired, (timeout,))
        self._clock.daemon = True
        self._clock.start()

    def remove(self) -> None:
        """End it and remove it, its writable top and its anonymous volumes; harmless when it is gone."""
        if self._clock is not None:
            self._clock.cancel()
        if self._last is not None:
            return
        try:
            if self.inspect().status not in (*_NO_LONGER, "created"):
                self._asked = self._asked or KILLED
                self._engine.kill(self.id)
                self._engine.wait(self.id)
            self._last = self.inspect()
            self._engine.remove(self.id, force=True, volumes=True)
        except NotFound:
            return
        except Conflict:  # it ended by itself between the question and the kill
            self._last = self.inspect()
            self._engine.remove(self.id, force=True, volumes=True)

    def _expired(self, timeout: float) -> None:
        before = self._asked, self._limit
        self._asked, self._limit = self._asked or TIMEOUT, f"timeout={timeout:g}"
        try:
            self._engine.kill(self.id)
        except (NotFound, Conflict):  # it was faster
            self._asked, self._limit = before

    def _working_directory(self) -> str:
        seen = self.inspect()
        if seen.settings.working_directory:
            return seen.settings.working_directory
        configuration = self._engine.images.get(seen.image_id).config.get("config")
        return str(configuration.get("WorkingDir") or "/") if isinstance(configuration, dict) else "/"


def _bytes(input: bytes | str) -> bytes:
    return input.encode() if isinstance(input, str) else input
