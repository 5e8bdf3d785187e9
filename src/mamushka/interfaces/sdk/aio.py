"""The same boxes for asyncio: the names of ``mamushka`` with ``await`` before them.

    async with await mamushka.aio.run("python:3.12") as box:
        done = await box.exec("python", "-c", "print(6 * 7)", timeout=5)

Calls of the engine run in threads of a pool. Streams do not: they wait for their descriptor in the event loop, so
a cancelled read loses nothing. Whoever is cancelled while a command runs kills that command before going on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

from mamushka.interfaces.sdk import auditing, host
from mamushka.interfaces.sdk import box as sync
from mamushka.interfaces.sdk.aio_process import SLICE, Process, born, call, in_thread
from mamushka.interfaces.sdk.streams import UNREAD_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from os import PathLike
    from typing import Unpack

    from mamushka.engine.audit import Report
    from mamushka.engine.engine import Engine
    from mamushka.engine.images import ImageSummary, Progress
    from mamushka.engine.logs import Line
    from mamushka.engine.workload import Published, Workload
    from mamushka.interfaces.sdk.ask import Asked
    from mamushka.interfaces.sdk.files import Files as SyncFiles
    from mamushka.interfaces.sdk.files import Stat
    from mamushka.interfaces.sdk.process import Process as SyncProcess
    from mamushka.interfaces.sdk.result import Completed, Runtime, Verdict
    from mamushka.interfaces.sdk.snapshot import Snapshot as SyncSnapshot
    from mamushka.runtime import Stats


async def run(
    image: str,
    *command: str,
    timeout: float | None = None,
    pull: str = "missing",
    engine: Engine | None = None,
    **asked: Unpack[Asked],
) -> Box:
    """Start a box; see ``mamushka.run``. Cancelled, it leaves no box."""
    start = partial(sync.run, image, *command, timeout=timeout, pull=pull, engine=engine, **asked)
    return Box(await born(start, sync.Box.remove))


async def once(
    image: str,
    *command: str,
    input: bytes | str = b"",
    timeout: float | None = None,
    output_limit: int = UNREAD_MAX,
    pull: str = "missing",
    engine: Engine | None = None,
    **asked: Unpack[Asked],
) -> Completed:
    """Run one command in a box of its own; see ``mamushka.once``. Cancelled, it leaves no box."""
    engine = engine or host.default_engine()
    begin = partial(sync.begin, image, command, pull, bool(input), engine, asked)
    box, process = await born(begin, lambda born: born[0].remove())
    async with Box(box), Process(process) as running:
        return await running.complete(input, timeout, output_limit)


async def get(identifier: str, *, engine: Engine | None = None) -> Box:
    """The box of that name or id; see ``mamushka.get``."""
    return Box(await call(sync.get, identifier, engine=engine))


async def boxes(
    *, all: bool = False, labels: Mapping[str, str] | None = None, engine: Engine | None = None
) -> list[Box]:
    """The boxes there are; see ``mamushka.boxes``."""
    return [Box(box) for box in await call(sync.boxes, all=all, labels=labels, engine=engine)]


async def pull(
    name: str,
    *,
    platform: str = "",
    progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
) -> ImageSummary:
    """Fetch an image; see ``mamushka.pull``. ``progress`` is called in the event loop; cancelled, it stops."""
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    def step(news: Progress) -> None:
        if cancelled.is_set():
            raise asyncio.CancelledError
        if progress is not None:
            loop.call_soon_threadsafe(progress, news)

    work = in_thread(host.pull, name, platform=platform, progress=step, engine=engine)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([work])
        raise


async def audit(
    image: str = "host", *, pull: str = "missing", engine: Engine | None = None, **asked: Unpack[Asked]
) -> Report:
    """What a box with these settings could reach; see ``mamushka.audit``."""
    return await call(partial(auditing.audit, image, pull=pull, engine=engine, **asked))


async def images(*, engine: Engine | None = None) -> list[ImageSummary]:
    """The images on this machine; see ``mamushka.images``."""
    return await call(host.images, engine=engine)


def _remove_all(boxes: Sequence[sync.Box]) -> None:
    for box in boxes:
        box.remove()


class Snapshot:
    """What a box was at one moment; see ``mamushka.Snapshot``."""

    def __init__(self, snapshot: SyncSnapshot) -> None:
        self._snapshot = snapshot
        self.name, self.directory = snapshot.name, snapshot.directory

    async def __aenter__(self) -> Snapshot:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.remove()

    async def start(self, *, name: str = "") -> Box:
        """A further box that goes on from here. Cancelled, it leaves none."""
        return Box(await born(partial(self._snapshot.start, name=name), sync.Box.remove))

    async def start_many(self, count: int, *, names: tuple[str, ...] = ()) -> list[Box]:
        """``count`` of them."""
        return [Box(box) for box in await born(partial(self._snapshot.start_many, count, names=names), _remove_all)]

    async def remove(self) -> None:
        """Remove it from the disk."""
        await call(self._snapshot.remove)


class Box:
    """A box whose verbs are awaited; see ``mamushka.Box``. Removed at the end of ``async with``."""

    def __init__(self, box: sync.Box) -> None:
        self.id = box.id
        self.files = Files(box.files)
        self._box = box

    def __repr__(self) -> str:
        return f"<mamushka.aio.Box {self.id[:12]}>"

    async def __aenter__(self) -> Box:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.remove()

    async def exec(
        self,
        *command: str,
        input: bytes | str = b"",
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        timeout: float | None = None,
        output_limit: int = UNREAD_MAX,
    ) -> Completed:
        """Run a command to its end; cancelled, it kills the command."""
        process = await self.popen(*command, environment=environment, working_directory=working_directory, user=user)
        async with process:
            return await process.complete(input, timeout, output_limit)

    async def shell(self, script: str, *, timeout: float | None = None, input: bytes | str = b"") -> Completed:
        """Run a script with the box's ``/bin/sh``."""
        return await self.exec("/bin/sh", "-c", script, timeout=timeout, input=input)

    async def popen(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        terminal: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Process:
        """Start a command and talk to it while it runs."""
        start = partial(
            self._box.popen,
            *command,
            environment=environment,
            working_directory=working_directory,
            user=user,
            terminal=terminal,
            size=size,
        )
        return Process(await born(start, _bury))

    async def attach(self, *, logs: bool = False) -> Process:
        """The box's own first process and its streams."""
        return Process(await born(partial(self._box.attach, logs=logs), lambda process: process.close()))

    async def inspect(self) -> Workload:
        """Everything that is known."""
        return await call(self._box.inspect)

    async def name(self) -> str:
        """Its name."""
        return (await self.inspect()).name

    async def status(self) -> str:
        """created, running, paused, restarting, exited, dead or removing."""
        return (await self.inspect()).status

    async def runtime(self) -> Runtime:
        """The wall that is really used, and why this one."""
        return await call(lambda: self._box.runtime)

    async def verdict(self) -> Verdict | None:
        """Who ended it and with which limit; None while it runs."""
        return await call(lambda: self._box.verdict)

    async def ports(self) -> Sequence[Published]:
        """The ports on which the host answers for it."""
        return await call(lambda: self._box.ports)

    async def port(self, inside: int, protocol: str = "tcp") -> int:
        """The host's port for a port inside."""
        return await call(self._box.port, inside, protocol)

    async def address(self) -> str:
        """Its address in its first network."""
        return await call(lambda: self._box.address)

    async def logs(self, *, tail: int = -1, stdout: bool = True, stderr: bool = True) -> str:
        """What its first process has written."""
        return await call(self._box.logs, tail=tail, stdout=stdout, stderr=stderr)

    async def follow(self, *, tail: int = -1) -> AsyncIterator[Line]:
        """The log line by line, and then each new one, until the box ends."""
        lines = self._box.follow(tail=tail)
        while (line := await call(next, lines, None)) is not None:
            yield line

    async def stats(self) -> Stats:
        """Its use of processor, memory, pids and disk now."""
        return await call(self._box.stats)

    async def wait(self, timeout: float | None = None) -> Verdict:
        """Until it has ended. TimeoutError after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
            try:
                return await call(self._box.wait, max(0.0, left))
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    async def start(self, *, checkpoint: str = "") -> None:
        """Start it again after it has ended, or let it go on from one of its checkpoints."""
        await call(partial(self._box.start, checkpoint=checkpoint))

    async def checkpoint(self, name: str, *, leave_running: bool = False, tcp_established: bool = False) -> None:
        """Write it down under a name of its own; it has ended then, unless it is left running."""
        ask = partial(self._box.checkpoint, name, leave_running=leave_running, tcp_established=tcp_established)
        await call(ask)

    async def snapshot(self, name: str = "", *, directory: str = "") -> Snapshot:
        """Write it down for further boxes to go on from; it runs on."""
        return Snapshot(await call(partial(self._box.snapshot, name, directory=directory)))

    async def fork(self, count: int = 1, *, names: Sequence[str] = ()) -> list[Box]:
        """Further boxes that go on from where this one is now. Cancelled, it leaves none."""
        return [Box(box) for box in await born(partial(self._box.fork, count, names=names), _remove_all)]

    async def stop(self, timeout: float | None = None) -> None:
        """Stop signal, then SIGKILL after ``timeout`` seconds."""
        await call(self._box.stop, timeout)

    async def kill(self, signal: str = "KILL") -> None:
        """Send a signal to its first process."""
        await call(self._box.kill, signal)

    async def pause(self) -> None:
        """Freeze every process in it."""
        await call(self._box.pause)

    async def resume(self) -> None:
        """Let them go on."""
        await call(self._box.resume)

    async def expire(self, timeout: float) -> None:
        """Kill it ``timeout`` seconds from now."""
        self._box.expire(timeout)

    async def remove(self) -> None:
        """End it and remove everything that it was, also while being cancelled."""
        await call(self._box.remove)


class Files:
    """``box.files``; see ``mamushka.Files``."""

    def __init__(self, files: SyncFiles) -> None:
        self._files = files

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """A file's bytes."""
        return await call(self._files.read, path, **({} if limit is None else {"limit": limit}))

    async def read_text(self, path: str) -> str:
        """A file's text."""
        return await call(self._files.read_text, path)

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644, user: int = 0, group: int = 0) -> None:
        """Create or replace a file."""
        await call(self._files.write, path, content, mode=mode, user=user, group=group)

    async def mkdir(self, path: str, *, mode: int = 0o755, user: int = 0, group: int = 0) -> None:
        """Make a directory, and those above it."""
        await call(self._files.mkdir, path, mode=mode, user=user, group=group)

    async def stat(self, path: str) -> Stat:
        """What a path names; a symbolic link is not followed."""
        return await call(self._files.stat, path)

    async def exists(self, path: str) -> bool:
        """Whether the path names something."""
        return await call(self._files.exists, path)

    async def list(self, path: str = ".") -> list[Stat]:
        """What a directory holds, by name."""
        return await call(self._files.list, path)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, a directory or a tree."""
        await call(self._files.remove, path, recursive=recursive)

    async def copy_in(self, source: str | PathLike[str], destination: str) -> None:
        """Copy a file or tree of this machine into a directory of the box."""
        await call(self._files.copy_in, source, destination)

    async def copy_out(self, source: str, destination: str | PathLike[str]) -> None:
        """Copy a file or tree of the box into a directory of this machine."""
        await call(self._files.copy_out, source, destination)


def _bury(process: SyncProcess) -> None:
    process.kill()
    process.close()
