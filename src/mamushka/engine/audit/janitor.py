"""Who removes the audited workload where its auditor cannot: it was killed between creating and starting it.

From its start on a workload ends by itself, and its shim removes it; before that it belongs to nobody. The janitor is
a process of its own that sleeps in a read from a pipe, finds the workload by its label, and removes it, unless it was
told that this has been done.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine

LABEL = "mamushka.audit"
_DONE = b"done"
_PROGRAM = """\
import sys
sys.path[:0] = sys.argv[1:2]
from mamushka.engine.audit.janitor import watch
watch(*sys.argv[2:])
"""


class Janitor:
    """A context manager around the life of the workload with this mark."""

    def __init__(self, engine: Engine, mark: str) -> None:
        import subprocess

        place = os.path.dirname(os.path.dirname(sys.modules["mamushka"].__file__ or ""))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, place, engine.paths.data, engine.paths.run, mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # no signal of a terminal's reaches it
        )

    def __enter__(self) -> Janitor:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._process.stdin is not None
        try:
            if kind is None:
                self._process.stdin.write(_DONE)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # somebody has ended it
        self._process.wait()


def watch(data_root: str, run_root: str, mark: str) -> None:
    """The janitor itself."""
    if sys.stdin.buffer.read() == _DONE:
        return
    from mamushka.engine.engine import Engine
    from mamushka.errors import NotFound

    with Engine(data_root, run_root) as engine:
        for workload in engine.workloads(all=True, filters={"label": [f"{LABEL}={mark}"]}):
            try:
                engine.remove(workload.id, force=True, volumes=True)
            except NotFound:
                pass  # its own end has removed it
