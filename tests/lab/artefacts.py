"""A plugin of pytest's: each failed test leaves a directory with its report, the plan and the trace.

    report.txt  what pytest says of it, with the output it had caught
    plan.txt    every operation that was planned meanwhile, one a line
    trace.txt   every event, with its fields and when it came
    kernel.txt  what the kernel said meanwhile, if anything

``pytest -p tests.lab.artefacts --artefacts=DIRECTORY``; without a directory it does nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from mamushka import trace

# A runaway loop must not fill the host's disk: the newest events of a test are kept.
_EVENTS_MAX = 5000
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--artefacts", default="", help="a directory for what failed tests leave")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--artefacts"):
        config.pluginmanager.register(Artefacts(config.getoption("--artefacts")), "artefacts of failed tests")


class Artefacts:
    """Listens to every test, and writes down what it heard of those that fail."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.events: list[tuple[float, str, dict[str, object]]] = []
        self.began = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.events, self.began = [], time.monotonic()
        trace.subscribe(self._hear)
        try:
            return (yield)
        finally:
            trace.unsubscribe(self._hear)

    def _hear(self, name: str, fields: dict[str, object]) -> None:
        self.events.append((time.monotonic(), name, fields))
        del self.events[:-_EVENTS_MAX]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        name = _NAME.sub("-", report.nodeid.partition("::")[2]).strip("-")
        where = f"{self.directory}/{name}.{report.when}"
        os.makedirs(where, exist_ok=True)
        plan = [str(fields.get("operation", "")) for _, name, fields in self.events if name.startswith("plan.")]
        sections = (f"---- {title} ----\n{text}" for title, text in report.sections)
        _write(f"{where}/report.txt", "\n".join([report.nodeid, report.longreprtext, *sections]))
        _write(f"{where}/plan.txt", "\n".join(plan))
        _write(f"{where}/trace.txt", "\n".join(self._line(*event) for event in self.events))
        _write(f"{where}/kernel.txt", _kernel(self.began))

    def _line(self, when: float, name: str, fields: dict[str, object]) -> str:
        return f"{when - self.began:9.4f} {name}" + "".join(f" {key}={text!r}" for key, text in fields.items())


def _write(path: str, text: str) -> None:
    if text:
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(text + "\n")


def _kernel(began: float) -> str:
    """The kernel's lines since then; nothing where they may not be read."""
    try:
        said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    lines = (re.match(r"\[ *(\d+\.\d+)\]", line) for line in said.splitlines())
    return "\n".join(found.string for found in lines if found and float(found[1]) >= began)
