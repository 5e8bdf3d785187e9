"""Kills itself at one of criu's moments: ``python -m … STATE NAME ROOTFS MOMENT checkpoint|restore DIRECTORY``."""

from __future__ import annotations

import os
import signal
import sys

from mamushka import trace
from mamushka.runtime import Stdio

from .conftest import Ground


def main() -> None:
    """Prints nothing; exits with 0 when the moment never came."""
    state, name, rootfs, moment, verb, directory = sys.argv[1:]

    def sink(event: str, fields: dict[str, object]) -> None:
        if event == "criu.moment" and fields["name"] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    ground = Ground(state, rootfs, name)
    trace.subscribe(sink)
    if verb == "checkpoint":
        ground.runtime.checkpoint(name, directory)
    else:
        null = os.open("/dev/null", os.O_RDWR)
        ground.runtime.restore(name, ground.bundle(ground.config("true")), Stdio(null, null, null), directory)


if __name__ == "__main__":
    main()
