"""A running process for asyncio, and how the engine's blocking calls meet an event loop."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mamushka.interfaces.sdk.streams import STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import ParamSpec, TypeVar

    from mamushka.interfaces.sdk.process import Process as SyncProcess
    from mamushka.interfaces.sdk.result import Completed, Verdict

    P = ParamSpec("P")
    R = TypeVar("R")

# Threads mostly wait; asyncio's own pool has six on a machine of two processors.
_threads = ThreadPoolExecutor(64, thread_name_prefix="mamushka")
# A thread that waits for a box looks up this often (seconds), so that nobody waits for it when it is cancelled.
SLICE = 1.0


def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    """Begin a call in a thread of the pool."""
    if os.geteuid() != 0:
        # An ordinary user's engine enters a user namespace, which it can only before there are threads.
        from mamushka.interfaces.sdk.host import default_engine

        default_engine()
    return asyncio.get_running_loop().run_in_executor(_threads, partial(function, *args, **kwargs))


async def call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """In a thread. When cancelled, the call is still seen to its end: it may hold what must be released."""
    work = in_thread(function, *args, **kwargs)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()
        raise


async def born(function: Callable[P, R], bury: Callable[[R], object], *args: P.args, **kwargs: P.kwargs) -> R:
    """Like ``_call`` for something that starts something: when cancelled, what was started is ended."""
    work = in_thread(function, *args, **kwargs)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if work.exception() is None:
            await call(bury, work.result())
        raise


class Process:
    """A running process; see ``mamushka.Process``. Killed when ``async with`` is left by an exception."""

    def __init__(self, process: SyncProcess) -> None:
        self.args = process.args
        self.stdin = Writer(process)
        turn = asyncio.Lock()
        self.stdout = Reader(process, STDOUT, turn)
        self.stderr = Reader(process, STDERR, turn)
        self._process = process

    @property
    def returncode(self) -> int | None:
        """As a shell reports it, None while it is not known to have ended."""
        return self._process.returncode

    @property
    def verdict(self) -> Verdict | None:
        """Who ended it, None while it is not known to have ended."""
        return self._process.verdict

    async def wait(self, timeout: float | None = None) -> int:
        """The return code. TimeoutError after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
            try:
                return await call(self._process.wait, max(0.0, left))
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    async def communicate(self, input: bytes = b"", timeout: float | None = None) -> tuple[bytes, bytes]:
        """Write all input, read both streams to their ends, wait."""
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as both:
            both.create_task(self._feed(input))
            out = both.create_task(self.stdout.read())
            err = both.create_task(self.stderr.read())
        await self.wait()
        return out.result(), err.result()

    async def complete(self, input: bytes | str, timeout: float | None, output_limit: int) -> Completed:
        """To its end, within limits; cancelled, it is killed first."""
        raw = input.encode() if isinstance(input, str) else input
        work = in_thread(self._process.complete, raw, timeout, output_limit)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await call(self._process.kill)
            await asyncio.wait([work])
            raise

    async def send_signal(self, number: int) -> None:
        """Signal this process."""
        await call(self._process.send_signal, number)

    async def terminate(self) -> None:
        """SIGTERM."""
        await call(self._process.terminate)

    async def kill(self) -> None:
        """SIGKILL."""
        await call(self._process.kill)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        await call(self._process.resize, rows, columns)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is not None:
                await self.kill()
            await self.stdin.close()
            await self.wait()
        finally:
            self._process.close()

    async def _feed(self, input: bytes) -> None:
        try:
            await self.stdin.write(input)
            await self.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            return  # it ended without reading everything, as it may


class Reader:
    """An output stream; iterates over lines. Cancelling a read loses nothing."""

    def __init__(self, process: SyncProcess, stream: int, turn: asyncio.Lock) -> None:
        self._process = process
        self._streams = process.streams
        self._stream = stream
        self._turn = turn  # of receiving; shared by the two readers of a process

    async def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes as soon as there are any, or all until the end; nothing at the end."""
        while not self._streams.silent and (size < 0 or not self._streams.has(self._stream)):
            await self._more()
        return self._streams.take(self._stream, size)

    async def readline(self) -> bytes:
        """One line with its end, or what is left at the end of the stream."""
        while not self._streams.silent and not self._streams.has(self._stream, b"\n"):
            await self._more()
        return self._streams.take_line(self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    async def _more(self) -> None:
        """Wait in the event loop for the process's next piece, whichever stream it belongs to."""
        seen = self._streams.received
        async with self._turn:
            if self._streams.received == seen and not self._streams.silent:
                await _readable(self._process.fileno())
                self._streams.receive()


class Writer:
    """Standard input."""

    def __init__(self, process: SyncProcess) -> None:
        self._process = process

    async def write(self, piece: bytes) -> None:
        """All of it; BrokenPipeError once the process takes no more."""
        await call(self._write, piece)

    async def close(self) -> None:
        """End of file."""
        await call(self._process.stdin.close)

    def _write(self, piece: bytes) -> None:
        self._process.stdin.write(piece)
        self._process.stdin.flush()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    news: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _arrive, news)
    try:
        await news
    finally:
        loop.remove_reader(fd)


def _arrive(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
