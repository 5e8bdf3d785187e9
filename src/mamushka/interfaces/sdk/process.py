"""A running process behind a wall, spelled like ``subprocess.Popen``."""

from __future__ import annotations

import io
import signal
import threading
import time

from mamushka.interfaces.sdk.result import KILLED, OUTPUT, TIMEOUT, Completed, judge
from mamushka.interfaces.sdk.streams import STDERR, STDOUT, UNREAD_MAX, Input, Output, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from mamushka.engine.attach import Attached
    from mamushka.interfaces.sdk.result import Verdict

# A pipe holds this much without a reader (PIPE_BUF), so it is written without a thread.
WRITTEN_AT_ONCE = 4096
# After a kill its own descendants may hold the streams open; what they still say is worth no more seconds than this.
LAST_WORDS = 0.5


class Process:
    """One process in a box; a context manager that waits for it, or kills it when the block raises.

    >>> with box.popen("sort") as sort:
    ...     sort.stdin.write(b"b\\na\\n")
    ...     sort.stdin.close()
    ...     sort.stdout.read()
    b'a\\nb\\n'
    """

    def __init__(self, attached: Attached, args: tuple[str, ...], *, memory: int = 0) -> None:
        self.args = args
        self.streams = Streams(attached)
        self.stdin: BinaryIO = io.BufferedWriter(Input(attached))
        self.stdout: BinaryIO = io.BufferedReader(Output(self.streams, STDOUT))
        self.stderr: BinaryIO = io.BufferedReader(Output(self.streams, STDERR))
        self.verdict: Verdict | None = None
        self._attached = attached
        self._memory = memory
        self._asked = self._limit = ""

    @property
    def returncode(self) -> int | None:
        """As a shell reports it, None while it is not known to have ended: ``poll`` and ``wait`` find out."""
        return self.verdict.returncode if self.verdict else None

    def fileno(self) -> int:
        """Readable when a stream has news."""
        return self._attached.fileno()

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The return code. TimeoutError after ``timeout`` seconds; a process may stop for want of a reader."""
        if self.verdict is None:
            exit = self._attached.wait(timeout)
            self.verdict = judge(exit, asked=self._asked, limit=self._limit, memory=self._memory)
        return self.verdict.returncode

    def communicate(self, input: bytes = b"", timeout: float | None = None) -> tuple[bytes, bytes]:
        """Write all input, read both streams to their ends, wait. TimeoutError; what was read stays to be read."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._write_behind(input)
        while not self.streams.silent:
            self.streams.receive(_left(deadline))
        self.wait(_left(deadline))
        return self.streams.take(STDOUT), self.streams.take(STDERR)

    def complete(self, input: bytes = b"", timeout: float | None = None, output_limit: int = UNREAD_MAX) -> Completed:
        """Like ``communicate``; a process that breaks a limit is killed, and the verdict names the limit."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._write_behind(input)
        try:
            while not self.streams.silent and self._within(output_limit):
                self.streams.receive(_left(deadline))
            if self.streams.silent:
                self.wait(_left(deadline))
        except TimeoutError:
            self._end(TIMEOUT, f"timeout={timeout:g}")
        if self.verdict is None:
            self._end(OUTPUT, f"output_limit={output_limit}")
        assert self.verdict is not None
        written = [self.streams.take(stream)[:output_limit] for stream in (STDOUT, STDERR)]
        return Completed(self.args, self.verdict, *written)

    def send_signal(self, number: int) -> None:
        """Signal this process; harmless when it has ended."""
        if self.poll() is None:
            self._attached.kill(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._asked = self._asked or KILLED
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._asked = self._asked or KILLED
        self.send_signal(signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        self._attached.resize(rows, columns)

    def close(self) -> None:
        """Let go of the streams; the process goes on."""
        self._attached.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                self.kill()
            self.stdin.close()
            self.wait()
        finally:
            self.close()

    def _within(self, limit: int) -> bool:
        return max(self.streams.total(STDOUT), self.streams.total(STDERR)) <= limit

    def _write_behind(self, input: bytes) -> None:
        """Feed standard input while the output is read; only what a pipe may not hold needs a thread."""
        if len(input) <= WRITTEN_AT_ONCE:
            self._feed(input)
        else:
            threading.Thread(target=self._feed, args=(input,), name="mamushka-stdin", daemon=True).start()

    def _feed(self, input: bytes) -> None:
        try:
            self.stdin.write(input)
            self.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it ended without reading everything, as it may

    def _end(self, by: str, limit: str) -> None:
        """Kill it for breaking a limit; if it ended first, it ended itself."""
        if self.poll() is None:
            self._asked, self._limit = by, limit
            self._attached.kill(signal.SIGKILL)
            self.wait()
        deadline = time.monotonic() + LAST_WORDS
        try:
            while not self.streams.silent and self._within(UNREAD_MAX // 2):
                self.streams.receive(_left(deadline))
        except TimeoutError:
            return


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
