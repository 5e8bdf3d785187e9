"""Nothing stays of an audit: neither at its end, nor when the auditor is killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests import host

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.network]

WARDEN = b"mamushka-audit\0"


def wardens(run_root: str) -> list[str]:
    """The wardens of auditors that were started in this directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read()
            if line.startswith(WARDEN) and os.readlink(f"/proc/{pid}/cwd") == run_root:
                found.append(pid)
        except OSError:
            continue  # ended meanwhile
    return found


def canaries(run_root: str) -> list[str]:
    return [name for name in os.listdir(run_root) if name.startswith("audit-")]


def segments() -> set[str]:
    """The segments that are as a canary is: others on this machine have theirs."""
    with open("/proc/sysvipc/shm") as file:
        return {words[1] for words in map(str.split, file) if words[2:4] == ["666", "4096"]}


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def start(roots: tuple[str, str]) -> subprocess.Popen[bytes]:
    """In the run root, by which its warden is known."""
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    words = [program, "--data-root", roots[0], "--run-root", roots[1], "audit", "--network", "none"]
    return subprocess.Popen(words, cwd=roots[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def quiet() -> bool:
    before = host.look()
    time.sleep(0.3)
    return not host.difference(before, host.look(), ignore=host.SHARED)


@pytest.fixture
def world(mamushka: Command, roots: tuple[str, str]) -> Command:
    """The command line, once everything is there that is made once."""
    os.makedirs(roots[1], exist_ok=True)
    eventually(quiet, "the tests before have not come to rest")
    assert mamushka("run", "--rm", "--network", "none", "host", "true").returncode == 0
    return mamushka


def test_an_audit_leaves_nothing(world: Command, roots: tuple[str, str], untouched: None) -> None:
    before = segments()
    audit = start(roots)
    eventually(lambda: wardens(roots[1]) and canaries(roots[1]), "no canary came")
    assert audit.wait(60) == 0
    assert not canaries(roots[1]) and not wardens(roots[1])
    assert segments() <= before
    assert world("ps", "-aq").stdout == b""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2])
def test_a_killed_auditor_leaves_nothing(world: Command, roots: tuple[str, str], untouched: None, delay: float) -> None:
    before = segments()
    audit = start(roots)
    eventually(lambda: canaries(roots[1]) or audit.poll() is not None, "no canary came")
    time.sleep(delay)
    audit.send_signal(signal.SIGKILL)
    audit.wait()
    eventually(lambda: not wardens(roots[1]), "the warden outlived its auditor")
    assert not canaries(roots[1])
    assert segments() <= before
    eventually(lambda: world("ps", "-aq").stdout == b"", "a workload is left")
    assert world("audit", "--network", "none").returncode == 0
