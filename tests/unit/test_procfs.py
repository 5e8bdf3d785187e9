"""procfs: who comes from whom."""

from __future__ import annotations

import os
import subprocess
import sys

from mamushka.linux.procfs import descendants

_CHILD = "import subprocess, sys; print(subprocess.Popen(['cat'], stdin=0).pid, flush=True); sys.stdin.read()"


def test_descendants() -> None:
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = descendants(child.pid)
        assert found == (child.pid, grandchild)
        assert set(found) < set(descendants(os.getpid()))
    finally:
        child.communicate("")
    assert descendants(child.pid) == (child.pid,)
