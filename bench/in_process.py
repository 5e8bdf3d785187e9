"""One call of the Python API from spawn to exit, as a program that embeds mamushka makes it."""

from __future__ import annotations

import os
from collections.abc import Callable

from bench.world import World
from mamushka.container import defaults
from mamushka.container.runtime import ContainerRuntime
from mamushka.container.seccomp import default_profile
from mamushka.runtime import Bundle, Stdio
from mamushka.spec.runtime import Config, Linux, Memory, Pids, Process, Resources, Root, User


def spawn(world: World) -> Callable[[], None]:
    """Run ``true`` in new namespaces, with limits, default seccomp and capabilities; wait; remove."""
    runtime = ContainerRuntime(world.run_path("api"))
    bundle = Bundle(world.path("api", "bundle"), configuration(world.rootfs()))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stdio = Stdio(null, null, null)

    def turn() -> None:
        started = runtime.run("bench", bundle, stdio)
        _, status = os.waitpid(started.pid, 0)
        os.close(started.pidfd)
        runtime.delete("bench")
        if status:
            raise RuntimeError(f"true ended with {os.waitstatus_to_exitcode(status)}")

    return turn


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
