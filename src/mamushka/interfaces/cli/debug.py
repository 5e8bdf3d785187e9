"""--debug: every step as it is taken, with the time since the start and since the step before, and an account."""

from __future__ import annotations

import sys
import time

from mamushka import trace
from mamushka.interfaces.cli.output import DIM, paint, printable, talk

_SLOWEST = 4


class Clock:
    """A sink for trace events that prints them with times in milliseconds."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._steps: list[tuple[float, str]] = []
        # The interpreter's own start lies before anything that we could have timed.
        _line(f"{time.process_time() * 1e3:9.2f} ms of CPU for the interpreter and the command line")

    def __call__(self, name: str, fields: dict[str, object]) -> None:
        since, step = self._tick()
        operation = fields.get("operation")
        rest = [f"{key}={item}" for key, item in fields.items() if key != "operation"]
        words = " ".join([name, *([str(operation)] if operation else []), *rest])
        self._steps.append((step, f"{name} {operation}" if operation else name))
        _line(f"{since:9.2f} ms {f'+{step:.2f}':>9}  {printable(words)}")

    def account(self) -> None:
        """How long it took in all, and which steps had most of it: each is named by the event at its end."""
        since, _ = self._tick()
        slowest = sorted(self._steps, reverse=True)[:_SLOWEST]
        most = ", ".join(f"{step:.2f} until {printable(name)}" for step, name in slowest)
        _line(f"{since:9.2f} ms in all" + (f"; of that {most}" if most else ""))

    def _tick(self) -> tuple[float, float]:
        """Milliseconds since the start, and since the last tick."""
        now = time.perf_counter()
        since, step = (now - self._begun) * 1e3, (now - self._last) * 1e3
        self._last = now
        return since, step


def _line(text: str) -> None:
    talk(paint(text, DIM, sys.stderr))


def begin() -> Clock:
    """Print events from now on."""
    clock = Clock()
    trace.subscribe(clock)
    return clock
