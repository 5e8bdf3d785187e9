"""An ordinary child process that speaks like one behind a wall (engine.attach.Attached), for tests of streams."""

from __future__ import annotations

import os
import select
import subprocess

from mamushka.runtime import Exit


class Local:
    """The far end is real: a program, its pipes, its exit; only the wall is missing."""

    def __init__(self, *command: str) -> None:
        self.identifier = "local"
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._stdin = self._child.stdin
        self._outputs = {self._child.stdout.fileno(): 1, self._child.stderr.fileno(): 2}
        self._poll = select.epoll()
        for fd in self._outputs:
            self._poll.register(fd, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def read(self) -> tuple[int, bytes]:
        while self._outputs:
            fd, _ = self._poll.poll()[0]
            if piece := os.read(fd, 65536):
                return self._outputs[fd], piece
            self._poll.unregister(fd)
            del self._outputs[fd]
        return 0, b""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._stdin.fileno(), view) :]

    def close_stdin(self) -> None:
        self._stdin.close()

    def resize(self, rows: int, columns: int) -> None:
        raise AssertionError(f"no terminal to make {rows} by {columns}")

    def kill(self, signal: int) -> None:
        self._child.send_signal(signal)

    def wait(self, timeout: float | None = None) -> Exit:
        try:
            status = self._child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(str(error)) from error
        return Exit(signal=-status) if status < 0 else Exit(code=status)

    def close(self) -> None:
        self._poll.close()
        for file in (self._child.stdin, self._child.stdout, self._child.stderr):
            if file is not None:
                file.close()
