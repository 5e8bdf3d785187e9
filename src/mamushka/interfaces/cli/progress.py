"""What moves while an image travels: a bar per layer where a person looks, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from mamushka.interfaces.cli.output import printable
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from mamushka.engine.images import Progress

_BAR = 24
# A terminal that is redrawn more often than this is not easier to read.
_PAUSE = 0.05
# Off a terminal only changes of these kinds are worth a line; the rest is movement.
_MOVING = ("Downloading", "Extracting", "Pushing", "Verifying Checksum")


def show(steps: Iterable[Progress], *, quiet: bool = False, stream: TextIO | None = None) -> None:
    """Consume the steps, which does the work."""
    stream = stream or sys.stderr
    if quiet:
        for _ in steps:
            pass
    elif stream.isatty():
        _bars(steps, stream)
    else:
        _lines(steps, stream)


def _lines(steps: Iterable[Progress], stream: TextIO) -> None:
    for step in steps:
        if not step.layer:
            print(printable(step.status), file=stream, flush=True)
        elif step.status not in _MOVING:
            print(printable(f"{step.layer}: {step.status}"), file=stream, flush=True)


class _Board:
    """The layers' lines, redrawn in place; what is about the whole scrolls by above them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._layers: dict[str, Progress] = {}
        self._begun: dict[str, float] = {}
        self._drawn = 0
        self._due = 0.0

    def layer(self, step: Progress) -> None:
        """A layer has moved."""
        if step.layer not in self._layers or self._layers[step.layer].status != step.status:
            self._begun[step.layer] = time.monotonic()
            self._due = 0.0
        self._layers[step.layer] = step
        if time.monotonic() >= self._due:
            self.draw()

    def say(self, text: str) -> None:
        """A line about the whole."""
        self._rewind()
        self._stream.write(f"\x1b[K{printable(text)}\n")
        self.draw()

    def draw(self) -> None:
        """Every layer's line, over the ones drawn before; more than the terminal has rows are not shown."""
        columns, rows = _size(self._stream)
        self._rewind()
        lines = [self._line(step)[: columns - 1] for step in self._layers.values()][-max(1, rows - 2) :]
        self._stream.write("".join(f"\x1b[K{line}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)
        self._due = time.monotonic() + _PAUSE

    def _rewind(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A")
        self._drawn = 0

    def _line(self, step: Progress) -> str:
        text = f"{step.layer}: {step.status}"
        if step.total and step.status in _MOVING:
            full = min(_BAR, _BAR * step.current // step.total)
            spent = time.monotonic() - self._begun[step.layer]
            speed = f"  {units.human_size(step.current / spent)}/s" if spent > 0.5 else ""
            bar = "=" * max(0, full - 1) + ">" * (full > 0) + " " * (_BAR - full)
            text += f" [{bar}] {units.human_size(step.current)}/{units.human_size(step.total)}{speed}"
        return printable(text)


def _bars(steps: Iterable[Progress], stream: TextIO) -> None:
    board = _Board(stream)
    try:
        for step in steps:
            if step.layer:
                board.layer(step)
            else:
                board.say(step.status)
    finally:
        board.draw()


def _size(stream: TextIO) -> tuple[int, int]:
    """(columns, rows); a serial line or a fresh pseudo-terminal says 0 and is taken for the usual 80 by 24."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24


def counted(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The chunks, with their sum on a terminal's last line while they pass."""
    if not sys.stderr.isatty():
        yield from chunks
        return
    total, due = 0, 0.0
    for chunk in chunks:
        total += len(chunk)
        if time.monotonic() >= due:
            due = time.monotonic() + _PAUSE
            sys.stderr.write(f"\r\x1b[K{what} {units.human_size(total)}")
            sys.stderr.flush()
        yield chunk
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
