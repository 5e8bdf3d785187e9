"""A double of a guest, for what stands above it: its processes are the host's own. No machine, no cage, no agent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mamushka.errors import Unsupported
from mamushka.machine import control
from mamushka.machine.cage import Cage
from mamushka.machine.inside import MAIN, Held, Streams
from mamushka.record import Record
from mamushka.runtime import Bundle, CannotExecute, CommandNotFound, Exit
from mamushka.spec.runtime import Process

if TYPE_CHECKING:
    from mamushka.machine.inside import Guest, Watcher
    from mamushka.machine.state import Saved


class Local:
    """Runs programs here. ``boots`` is called where a guest would come up."""

    def __init__(self, boots: Callable[[], None] = lambda: None) -> None:
        self._boots = boots
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._sizes: list[tuple[int, int]] = []
        self._go = threading.Semaphore(0)
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def cause(self) -> BaseException:
        return RuntimeError("it was asked to")

    def boot(
        self,
        cage: Cage,
        process: Process,
        streams: Streams,
        ready: Callable[[], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._main = process, streams
        self._boots()
        ready()

    def start(self, watcher: Watcher) -> None:
        self.begin(MAIN, *self._main, watcher)

    def begin(self, key: int, process: Process, streams: Streams, watcher: Watcher) -> None:
        ends = (streams.stdin, streams.stdout, streams.stderr)
        given = ends if streams.console < 0 else (streams.console,) * 3
        for end in given:
            os.set_blocking(end, True)
        env = dict(entry.split("=", 1) for entry in process.env)
        try:
            made = subprocess.Popen(
                process.args, cwd=process.cwd, env=env, stdin=given[0], stdout=given[1], stderr=given[2],
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            watcher.failed(CommandNotFound(f"exec: {error}"))
            return
        except PermissionError as error:
            watcher.failed(CannotExecute(f"exec: {error}"))
            return
        self._running[key] = made
        watcher.started(made.pid)

        def wait() -> None:
            code = made.wait()
            for end in set(ends) - {-1}:
                os.close(end)
            watcher.ended(Exit(code=code) if code >= 0 else Exit(signal=-code, oom_killed="OOM" in env))

        threading.Thread(target=wait, daemon=True).start()

    def signal(self, key: int, number: int) -> None:
        for made in self._running.values() if not key else (self._running[key],):
            os.kill(made.pid, number)

    def resize(self, key: int, rows: int, columns: int) -> None:
        self._sizes.append((rows, columns))

    def pause(self) -> None:
        for made in self._running.values():
            os.killpg(made.pid, signal.SIGSTOP)

    def resume(self) -> None:
        for made in self._running.values():
            os.killpg(made.pid, signal.SIGCONT)

    def save(
        self,
        held: Callable[[Held], None],
        done: Callable[[float], None],
        failed: Callable[[BaseException], None],
        *,
        paused: bool,
    ) -> None:
        """Its memory is a word; what it writes to is this file."""
        if "UNSAVED" in os.environ:
            raise Unsupported("this one cannot be saved")

        def hold() -> None:
            if not paused:
                self.pause()
            disk = control.file_of(b"disk")
            held(Held(control.file_of(b"state"), control.file_of(b"memory"), (disk,)))
            self._go.acquire()
            if not paused:
                self.resume()
            done(0.5)

        threading.Thread(target=hold, daemon=True).start()

    def go_on(self) -> None:
        self._go.release()

    def ask(self, verb: str, question: dict[str, Any], answer: Callable[[Any], None]) -> None:
        answer({"sizes": self._sizes} if verb == "sizes" else {"verb": verb, **question})
        if verb == "break":
            os.eventfd_write(self.ended_fd, 1)

    def close(self, done: Callable[[], None]) -> None:
        done()


class LocalMaker:
    """Makes ``Local`` guests."""

    def __init__(self, boots: Callable[[], None] = lambda: None) -> None:
        self._boots = boots

    def prepare(self, record: Record, bundle: Bundle, root: int) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        return lambda: Local(self._boots), ()

    def again(
        self, record: Record, bundle: Bundle, saved: Saved, memory: int
    ) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        return lambda: Local(self._boots), (memory,)

    def features(self) -> Mapping[str, object]:
        return {}
