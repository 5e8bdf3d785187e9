"""Processes that end with who forked them."""

from __future__ import annotations

import os
import subprocess
import sys

# The child tells whether its parent lives, then stays until it is killed; the pipe ends when it does.
FORKS = """
import os, sys, time
from mamushka.linux.process import end_with

parent, late = os.getpid(), sys.argv[1] == "late"
if os.fork() == 0:
    while late and os.getppid() == parent:
        time.sleep(0.01)
    os.write(1, b"%d" % end_with(parent))
    time.sleep(600 * (not late))
    os._exit(0)
if not late:
    sys.stdin.read()
os._exit(0)
"""


def test_it_is_killed_with_its_parent() -> None:
    command = [sys.executable, "-c", FORKS, "in time"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and os.read(process.stdout.fileno(), 1) == b"1"
        process.kill()
        assert process.communicate(timeout=20) == (b"", None)


def test_it_is_told_that_its_parent_had_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, "late"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    assert (done.stdout, done.stderr) == (b"0", b"")
