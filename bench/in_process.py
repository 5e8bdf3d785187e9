"""One call of the Python API from spawn to exit, as a program that embeds mamushka makes it.

The program is a process of its own that has imported nothing else: a fork costs by the memory of who forks, and this
benchmark's own process holds a test runner. How the cost grows with the caller stands in docs/benchmarks.md.
"""

from __future__ import annotations

import atexit
import os
import sys

from bench.served import serve
from mamushka.container import defaults
from mamushka.container.runtime import ContainerRuntime
from mamushka.container.seccomp import default_profile
from mamushka.runtime import Bundle, Started, Stdio
from mamushka.spec.runtime import Config, Linux, Memory, Pids, Process, Resources, Root, User
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def start(root: str, directory: str, rootfs: str) -> Callable[[], None]:
    """A turn runs ``true`` in new namespaces, with limits, default seccomp and capabilities; waits; removes."""
    runtime = ContainerRuntime(root)
    bundle = Bundle(directory, configuration(rootfs))
    stdio = _nothing()

    def turn() -> None:
        started = runtime.run("bench", bundle, stdio)
        _end(started)
        runtime.delete("bench")

    return turn


def further(root: str, directory: str, rootfs: str) -> Callable[[], None]:
    """A turn runs ``true`` in a container that is there already."""
    runtime = ContainerRuntime(root)
    config = configuration(rootfs)
    assert config.process is not None
    stdio = _nothing()
    asleep = replace(config, process=replace(config.process, args=("/bin/sleep", "86399")))
    started = runtime.run("bench-exec", Bundle(directory, asleep), stdio)
    process = config.process

    def turn() -> None:
        _end(runtime.exec("bench-exec", process, stdio))

    def end() -> None:
        runtime.delete("bench-exec", force=True)
        os.waitpid(started.pid, 0)

    atexit.register(end)
    return turn


def _nothing() -> Stdio:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return Stdio(null, null, null)


def _end(started: Started) -> None:
    _, status = os.waitpid(started.pid, 0)
    os.close(started.pidfd)
    if status:
        raise SystemExit(f"true ended with {os.waitstatus_to_exitcode(status)}")


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
    serve({"start": start, "exec": further}[sys.argv[1]](*sys.argv[2:]))
