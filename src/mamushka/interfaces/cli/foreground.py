"""A person's terminal or a script's pipes, connected to a workload's streams.

Output flows in the main thread, which also takes signals: they arrive on a pipe (signal.set_wakeup_fd), so
nothing is lost between two calls of poll. Input flows in a second thread, because writing blocks while the
workload takes none, and a workload such as ``cat`` takes none until its output is read.

The modules ``signal`` and ``threading`` are not used: they would bring ``enum`` into every start.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import os
import select

from mamushka.errors import Invalid
from mamushka.interfaces.cli.output import await_ready, talk, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.attach import Attached
    from mamushka.runtime import Exit

# What people, supervisors and shells send. Job control's signals keep their meaning for this program.
PROXIED = tuple(getattr(_signal, "SIG" + name) for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM"))
_PIECE = 1 << 16
_DETACHED = 0  # on the wakeup pipe; no signal has this number


class DetachKeys:
    """Finds a sequence of keys in what is typed, also when it comes in pieces."""

    def __init__(self, spelling: str) -> None:
        self._keys = bytes(_key(word) for word in spelling.split(",")) if spelling else b""
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be handed on, and whether the sequence is complete; a begun sequence is held back."""
        if not self._keys:
            return data, False
        whole = self._held + data
        at = whole.find(self._keys)
        if at >= 0:
            return whole[:at], True
        hold = min(len(self._keys) - 1, len(whole))
        while hold and not whole.endswith(self._keys[:hold]):
            hold -= 1
        self._held = whole[len(whole) - hold :]
        return whole[: len(whole) - hold], False


def _key(word: str) -> int:
    """The byte that a terminal sends: "ctrl-p", or a single character."""
    if len(word) == 1 and word.isascii():
        return ord(word)
    name = word.removeprefix("ctrl-")
    if name != word and len(name) == 1 and (name in "@[\\]^_" or ("a" <= name.lower() <= "z")):
        return ord(name.upper()) - 64
    raise Invalid(f"{word!r} is not a key", hint="a character, or ctrl- and one of a-z @ [ \\ ] ^ _")


class RawTerminal:
    """Keys pass unread and unechoed through this terminal, until the context ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] = []

    def __enter__(self) -> RawTerminal:
        import termios as t

        self._before = t.tcgetattr(self._fd)
        now = list(self._before)
        now[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        now[1] &= ~t.OPOST
        now[2] = now[2] & ~(t.CSIZE | t.PARENB) | t.CS8
        now[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        now[6] = [*now[6]]
        now[6][t.VMIN], now[6][t.VTIME] = 1, 0
        t.tcsetattr(self._fd, t.TCSADRAIN, now)
        return self

    def __exit__(self, *exc: object) -> None:
        import termios

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


class Signals:
    """Signals as bytes on a pipe, for as long as the context lasts."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._numbers = numbers
        self._before: list[Any] = []
        self.reader = self.writer = -1

    def __enter__(self) -> Signals:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = _signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        # The handler itself does nothing; that it exists makes the interpreter write to the pipe.
        self._before = [_signal.signal(number, lambda *_: None) for number in self._numbers]
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in zip(self._numbers, self._before, strict=True):
            _signal.signal(number, handler)
        _signal.set_wakeup_fd(self._wakeup)
        os.close(self.reader)
        # The writer stays open: the input thread may still say that it detached.


def terminal_size() -> tuple[int, int] | None:
    """(rows, columns) of the terminal we are at, if any."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:  # a terminal that was never told its size says 0
            return rows, columns
    return None


def check_terminal(*, terminal: bool, stdin: bool) -> None:
    """Refuse to give a workload a terminal whose keys come from something that is none."""
    if terminal and stdin and not os.isatty(0):
        raise Invalid(
            "standard input is not a terminal, and --tty with --interactive needs one", hint="leave out -t for a pipe"
        )


def attend(
    attached: Attached,
    *,
    stdin: bool,
    terminal: bool,
    streams: tuple[int, ...] = (1, 2),
    proxy: bool = True,
    detach_keys: str = "",
) -> int:
    """Stay until the process ends: the shell's number for how. 0 when the person detached; closes ``attached``."""
    keys = DetachKeys(detach_keys if terminal else "")
    numbers = (*(PROXIED if proxy else ()), *((_signal.SIGWINCH,) if terminal else ()))
    way_back = f"come back with: mamushka attach {attached.identifier[:12]}"
    try:
        with attached, Signals(numbers) as signals:
            if terminal and stdin:
                with RawTerminal(0):
                    ended = _attend(attached, signals, stdin, streams, keys)
            else:
                ended = _attend(attached, signals, stdin, streams, keys)
    except BrokenPipeError:
        talk(f"nobody reads the output any more, and it goes on; {way_back}")
        raise
    if ended is None:
        talk(f"\ndetached; {way_back}")
        return 0
    return ended.status


def _attend(
    attached: Attached, signals: Signals, stdin: bool, streams: tuple[int, ...], keys: DetachKeys
) -> Exit | None:
    if stdin:
        _thread.start_new_thread(_feed, (attached, signals.writer, keys))
    poll = select.poll()
    poll.register(attached.fileno(), select.POLLIN)
    poll.register(signals.reader, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == signals.reader:
                if not _signalled(attached, os.read(fd, 64)):
                    return None
            else:
                stream, data = attached.read()
                if not stream:
                    return attached.wait()
                if stream in streams:
                    write_all(stream, data)


def _signalled(attached: Attached, numbers: bytes) -> bool:
    """Hand signals on; whether we are still attached afterwards."""
    for number in numbers:
        if number == _DETACHED:
            return False
        try:
            if number == _signal.SIGWINCH:
                size = terminal_size()
                if size:
                    attached.resize(*size)
            else:
                attached.kill(number)
        except OSError:
            pass  # it has just ended; its exit is on the way
    return True


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _PIECE)
        except BlockingIOError:
            await_ready(fd)


def _feed(attached: Attached, wakeup: int, keys: DetachKeys) -> None:
    """Standard input into the process, until its end, the detach keys, or nobody takes it."""
    try:
        while data := _read(0):
            data, detach = keys.feed(data)
            if data:
                attached.write(data)
            if detach:
                os.write(wakeup, bytes([_DETACHED]))
                return
        attached.close_stdin()
    except OSError:
        pass  # the process closed its input, or has ended; the main thread learns of it by itself
