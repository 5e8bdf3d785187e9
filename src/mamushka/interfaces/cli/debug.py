"""--debug: every step as it is taken, with the time since the start and since the step before."""

from __future__ import annotations

import time

from mamushka import trace
from mamushka.interfaces.cli.output import DIM, paint, printable, talk


class Clock:
    """A sink for trace events that prints them with times in milliseconds."""

    def __init__(self) -> None:
        self.begun = self.last = time.perf_counter()

    def __call__(self, name: str, fields: dict[str, object]) -> None:
        now = time.perf_counter()
        since, step = (now - self.begun) * 1e3, (now - self.last) * 1e3
        self.last = now
        operation = fields.get("operation")
        rest = [f"{key}={item}" for key, item in fields.items() if key != "operation"]
        words = " ".join([name, *([str(operation)] if operation else []), *rest])
        self.line(f"{since:9.2f} ms {f'+{step:.2f}':>9}  {printable(words)}")

    def line(self, text: str) -> None:
        """One line of the account, on stderr."""
        import sys

        talk(paint(text, DIM, sys.stderr))


def begin() -> None:
    """Print events from now on."""
    clock = Clock()
    clock.line(f"{time.process_time() * 1e3:9.2f} ms of CPU for the interpreter and the command line")
    trace.subscribe(clock)
