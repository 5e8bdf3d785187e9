"""A creator that kills itself at its n-th event: ``python -m … STATE NAME ROOTFS N create|run``."""

from __future__ import annotations

import os
import signal
import sys

from mamushka import trace
from mamushka.runtime import Stdio

from .conftest import Ground


def main() -> None:
    """Prints the event before which it dies; exits with 0 when there is no n-th one."""
    state, name, rootfs, number, verb = sys.argv[1:]
    left = int(number)

    def sink(event: str, fields: dict[str, object]) -> None:
        nonlocal left
        if left == 0:
            print(event, fields, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    ground = Ground(state, rootfs, name)
    config = ground.config("sleep 60")
    trace.subscribe(sink)
    make = ground.runtime.create if verb == "create" else ground.runtime.run
    started = make(name, ground.bundle(config), Stdio())
    os.kill(started.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
