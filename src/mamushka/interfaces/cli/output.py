"""Data to stdout, talk to stderr; ``hint:`` after an empty line, colour only where someone looks."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

BOLD, RED, GREEN, YELLOW, DIM = "1", "31", "32", "33", "2"


def out(text: str = "", *, end: str = "\n") -> None:
    """One line of data."""
    sys.stdout.write(text + end)


def talk(text: str = "") -> None:
    """One line to the person."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def complain(text: str, hint: str = "") -> None:
    """What failed, and what one can do about it."""
    talk(f"{paint('mamushka:', RED, sys.stderr)} {text}")
    if hint:
        talk(f"\nhint: {hint}")


def write_all(fd: int, data: bytes) -> None:
    """Every byte, also to a pipe that takes few at a time, or one that somebody has made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await_ready(fd, writing=True)


def await_ready(fd: int, *, writing: bool = False) -> None:
    """Sleep until a non-blocking descriptor takes, or has, bytes; it is shared with others and stays as it is."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT if writing else select.POLLIN)
    poll.poll()


def coloured(stream: TextIO) -> bool:
    """A terminal, and nobody said NO_COLOR (no-color.org) or calls it dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where that is wanted; never the only carrier of a meaning."""
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured(stream) else text


def printable(text: str) -> str:
    """Names and messages from strangers, without the control characters that could repaint a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
