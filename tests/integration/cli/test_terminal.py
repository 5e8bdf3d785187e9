"""A person's terminal, played by a pseudo-terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pytest

from tests.integration.cli.test_run import ALONE, program

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.root


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(arguments[0], arguments)

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes, patience: float = 20.0) -> None:
        """Read until the text has come; what is before it is forgotten."""
        deadline = time.monotonic() + patience
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} never came, but {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError as error:  # EIO: the other side is closed
                    raise AssertionError(f"{text!r} never came, but {self.seen!r} and the end") from error
        self.seen = self.seen.partition(text)[2]

    def ended(self) -> int:
        """Its exit code; what it still says is read."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_shell_on_a_terminal(roots: tuple[str, str], mamushka: Command) -> None:
    terminal = Terminal([*program(roots), "run", "--rm", "-it", *ALONE, "host", "sh"])
    terminal.expect(b"# ")
    terminal.resize(33, 77)
    terminal.type(b"sleep 0.3; stty size; tty\n")
    terminal.expect(b"33 77\r\n/dev/pts/0\r\n")
    terminal.type(b"sleep 1000\n")
    terminal.expect(b"sleep 1000\r\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.expect(b"# ")
    terminal.type(b"exit 4\n")
    assert terminal.ended() == 4
    assert mamushka("ps", "-aq").stdout == b""


def test_detach_keys_leave_it_running_and_attach_comes_back(roots: tuple[str, str], mamushka: Command) -> None:
    terminal = Terminal([*program(roots), "run", "-it", "--name", "away", *ALONE, "host", "sh"])
    terminal.expect(b"# ")
    terminal.type(b"X=kept\n\x10\x11")
    terminal.expect(b"mamushka attach")
    assert terminal.ended() == 0
    assert mamushka("inspect", "-f", "{{.State.Status}}", "away").stdout == b"running\n"
    terminal = Terminal([*program(roots), "attach", "--detach-keys", "ctrl-x", "away"])
    time.sleep(0.5)
    terminal.type(b"echo $X again\n")
    terminal.expect(b"kept again")
    terminal.type(b"\x18")
    assert terminal.ended() == 0
    assert mamushka("rm", "-f", "away").returncode == 0


def test_exec_on_a_terminal(roots: tuple[str, str], mamushka: Command) -> None:
    mamushka("run", "-d", "--name", "host", *ALONE, "host", "sleep", "1000")
    terminal = Terminal([*program(roots), "exec", "-it", "host", "sh", "-c", "test -t 0 && echo terminal; exit 6"])
    terminal.expect(b"terminal\r\n")
    assert terminal.ended() == 6


def test_a_terminal_needs_one(mamushka: Command) -> None:
    done = mamushka("run", "--rm", "-it", *ALONE, "host", "sh")
    assert done.returncode == 125
    assert b"not a terminal" in done.stderr
    # Without -i the terminal is the workload's alone, and its output may go anywhere.
    done = mamushka("run", "--rm", "-t", *ALONE, "host", "echo", "x")
    assert done.stdout == b"x\r\n"


@pytest.mark.registry
def test_a_pull_has_a_line_per_layer(roots: tuple[str, str], mamushka: Command, layered_reference: str) -> None:
    terminal = Terminal([*program(roots), "pull", layered_reference])
    terminal.expect(b"Pulling fs layer")
    terminal.expect(b"\x1b[5A")  # five layers, five lines, drawn over themselves
    terminal.expect(b"Pull complete")
    terminal.expect(layered_reference.encode() + b"\r\n")
    assert terminal.ended() == 0
