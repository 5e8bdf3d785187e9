"""One call of the Python API from spawn to exit, as a program that embeds mamushka makes it.

The program is a process of its own that has imported nothing else: a fork costs by the memory of who forks, and this
benchmark's own process holds a test runner. How the cost grows with the caller stands in docs/benchmarks.md.
"""

from __future__ import annotations

import os
import subprocess
import sys

from mamushka.container import defaults
from mamushka.container.runtime import ContainerRuntime
from mamushka.container.seccomp import default_profile
from mamushka.runtime import Bundle, Stdio
from mamushka.spec.runtime import Config, Linux, Memory, Pids, Process, Resources, Root, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.world import World


def spawn(world: World) -> Callable[[], None]:
    """Have the program run ``true`` in new namespaces, with limits, default seccomp and capabilities; wait; remove."""
    directory = world.path("api", "bundle")
    words = [sys.executable, "-m", "bench.in_process", world.run_path("api"), directory, world.rootfs()]
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    orders, answers = program.stdin.fileno(), program.stdout.fileno()

    def turn() -> None:
        os.write(orders, b"\n")
        if os.read(answers, 1) != b"\n":
            raise RuntimeError("the program that embeds mamushka has ended")

    return turn


def serve(root: str, directory: str, rootfs: str) -> None:
    """One container for each line on standard input."""
    runtime = ContainerRuntime(root)
    bundle = Bundle(directory, configuration(rootfs))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stdio = Stdio(null, null, null)
    while os.read(0, 1):
        started = runtime.run("bench", bundle, stdio)
        _, status = os.waitpid(started.pid, 0)
        os.close(started.pidfd)
        runtime.delete("bench")
        if status:
            raise SystemExit(f"true ended with {os.waitstatus_to_exitcode(status)}")
        os.write(1, b"\n")


def configuration(rootfs: str) -> Config:
    """A bundle's configuration with everything that the engine gives a container by default."""
    return Config(
        "1.2.0",
        root=Root(rootfs),
        hostname="bench",
        process=Process(
            args=("/bin/true",),
            cwd="/",
            env=(f"PATH={defaults.PATH}",),
            user=User(),
            capabilities=defaults.CAPABILITIES,
            no_new_privileges=True,
        ),
        mounts=defaults.MOUNTS,
        linux=Linux(
            namespaces=defaults.NAMESPACES,
            masked_paths=defaults.MASKED_PATHS,
            readonly_paths=defaults.READONLY_PATHS,
            seccomp=default_profile(defaults.CAPABILITY_NAMES),
            resources=Resources(memory=Memory(limit=512 << 20), pids=Pids(limit=100), devices=defaults.DEVICE_RULES),
            cgroups_path="/mamushka-bench/api",
        ),
    )


if __name__ == "__main__":
    serve(*sys.argv[1:])
