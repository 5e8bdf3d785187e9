"""A person's terminal, or a script's pipes, as the serial port of a bare machine.

What the guest says goes to standard output without us. What is typed goes through here, for two keys mean the end.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select

from mamushka.interfaces.cli.foreground import DetachKeys, RawTerminal, Signals
from mamushka.interfaces.cli.output import talk, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mamushka.machine.bare import Terminal
    from mamushka.machine.control import Line

_ENDING = tuple(getattr(_signal, "SIG" + name) for name in ("HUP", "INT", "QUIT", "TERM"))
_PIECE = 4096
# What a guest has not taken of what was typed; a person who types more before it does loses that.
_WAITING_MAX = 1 << 16


def attend(start: Callable[[Terminal], tuple[int, Line]], *, serial: bool, leave: str) -> int:
    """Start a machine and stay until it ends; its exit status, 128 + n where a signal to us ended it."""
    from mamushka.machine.bare import Terminal

    keyboard = serial and os.isatty(0)
    settings = _settings() if keyboard else ()
    source, sink = os.pipe2(os.O_CLOEXEC) if serial else (-1, -1)
    with Signals(_ENDING) as signals:
        try:
            pid, line = start(Terminal(source, 1, 0 if keyboard else -1, settings))
        except BaseException:
            _close(sink)
            raise
        finally:
            _close(source)
        console = _Console(line, signals.reader, sink, DetachKeys(leave if keyboard else ""))
        try:
            if not keyboard:
                return console.stay()
            with RawTerminal(0):
                return console.stay()
        finally:
            console.close()
            line.close()
            os.waitpid(pid, 0)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _settings() -> tuple[Any, ...]:
    import termios

    return tuple(termios.tcgetattr(0))


class _Console:
    """Between standard input, signals, and the machine's line."""

    def __init__(self, line: Line, signals: int, sink: int, keys: DetachKeys) -> None:
        self._line, self._signals, self._sink, self._keys = line, signals, sink, keys
        self._typed = sink >= 0  # whether more may come
        self._waiting = b""
        self._signal = 0
        if sink >= 0:
            os.set_blocking(sink, False)

    def stay(self) -> int:
        """Until the machine has ended; its status."""
        from mamushka.machine.bare import ended

        while True:
            for fd, _ in self._poll():
                if fd == self._line.fileno():
                    packet, _ = self._line.receive()
                    if self._signal:
                        return 128 + self._signal
                    status, said = ended(packet)
                    if said:
                        talk(said)
                    return status
                if fd == self._signals:
                    self._signal = os.read(fd, 64)[0]
                    self._end()
                elif fd == self._sink:
                    self._flush()
                else:
                    self._read()

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        for fd in (self._line.fileno(), self._signals):
            poll.register(fd, select.POLLIN)
        if self._waiting:
            poll.register(self._sink, select.POLLOUT)
        # A script's input waits for the guest; a person's keys are looked at in any case.
        if self._typed and (not self._waiting or os.isatty(0)):
            poll.register(0, select.POLLIN)
        return poll.poll()

    def _read(self) -> None:
        try:
            data = os.read(0, _PIECE)
        except BlockingIOError:
            return
        except OSError:  # a terminal that has gone
            data = b""
        passed, leave = self._keys.feed(data)
        self._waiting = (self._waiting + passed)[:_WAITING_MAX]
        self._typed = bool(data)
        if leave:
            self._end()
        self._flush()

    def _flush(self) -> None:
        try:
            if self._waiting:
                self._waiting = self._waiting[os.write(self._sink, self._waiting) :]
        except BlockingIOError:
            return
        except OSError:  # the machine has ended; its last word is on the way
            self._waiting, self._typed = b"", False
        if not self._waiting and not self._typed:
            self.close()

    def close(self) -> None:
        """Nothing more will be typed."""
        sink, self._sink = self._sink, -1
        _close(sink)

    def _end(self) -> None:
        self._typed = False
        try:
            self._line.send({"ask": "end"})
        except OSError:
            pass  # it ends already


def relay(hand: Callable[[int], None]) -> int:
    """Standard input and output as one connection, whose other end is handed on; until either side ends."""
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        hand(theirs.fileno())
    finally:
        theirs.close()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(ours.fileno(), select.POLLIN)
    wire = ours.fileno()
    while True:
        for fd, _ in poll.poll():
            data = os.read(fd, _PIECE)
            if not data:
                ours.close()
                return 0
            write_all(1 if fd == wire else wire, data)
