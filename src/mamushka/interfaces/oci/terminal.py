"""Copying between the caller's terminal and a container's."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import termios
import tty

from mamushka.linux.terminal import set_size, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.runtime import Started

_CHUNK = 1 << 16


def converse(started: Started, *, sized: bool) -> None:
    """Copy both ways until the container's side is closed. ``sized``: the bundle has fixed the terminal's size."""
    console = started.console
    saved = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        if saved:
            tty.setraw(0)
            if not sized:
                _follow_size(console)
        _copy(console, started.pidfd)
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        os.close(console)


def _follow_size(console: int) -> None:
    def resize(_number: int = 0, _frame: object = None) -> None:
        set_size(console, *size(0))

    _signal.signal(_signal.SIGWINCH, resize)
    resize()


def _copy(console: int, pidfd: int) -> None:
    poll = select.poll()
    poll.register(console, select.POLLIN)
    poll.register(0, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if 0 in events:
            given = _read(0)
            if given:
                _write(console, given)
            else:
                poll.unregister(0)
        if console in events:
            shown = _read(console)
            if not shown:
                return
            _write(1, shown)
        elif pidfd in events:  # ended, and nothing left to show: who still holds the terminal is no concern
            return


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError:  # EIO: the last slave side is closed
        return b""


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
