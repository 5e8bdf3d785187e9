"""The walls by name, and which one a workload gets.

A wall is never weaker than what was asked for: the names are an order of preference, and where none of them works
here the answer is no, with the reason of each.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.runtime import Runtime

# The annotation that names a machine's kernel: machine.shape.KERNEL, without the import in front of every container.
KERNEL = "com.mamushka.machine.kernel"
NAMES = ("container", "vm", "emulated", "confidential")

_MISSING = {
    "emulated": "emulated machines are not part of this version",
    "confidential": "confidential machines are not part of this version",
}


def obstacle(name: str, kernel: str = "") -> str:
    """Why a wall cannot be had here; empty when it can. ``kernel`` is one that was named for a machine."""
    if name not in NAMES:
        raise Invalid(f"unknown runtime {name!r}", hint=f"one of {', '.join(NAMES)}")
    if name == "vm":
        from mamushka.engine import machines

        return machines.obstacle(kernel)
    return _MISSING.get(name, "")


def of_machines(names: Sequence[str], kernel: str, cold: bool) -> dict[str, str]:
    """The annotations that say how a machine is to be made. Invalid where no machine was asked for."""
    if not kernel and not cold:
        return {}
    from mamushka.engine.kernel_image import PREFIX
    from mamushka.machine.shape import COLD

    if "vm" not in names:
        raise Invalid("a kernel and a cold start are for machines", hint="choose the runtime vm")
    found = {KERNEL: kernel if kernel.startswith(PREFIX) else os.path.abspath(kernel)} if kernel else {}
    return {**found, COLD: "true"} if cold else found


def choose(names: Sequence[str], kernel: str = "") -> tuple[str, str]:
    """The first wall that can be had, and why it is this one. Unsupported with each reason when there is none."""
    obstacles: list[str] = []
    for name in names:
        reason = obstacle(name, kernel)
        if not reason:
            return name, "; ".join([*obstacles, f"{name} is the first of the asked for that works here"])
        obstacles.append(f"{name}: {reason}")
    raise Unsupported(
        f"no runtime of {', '.join(names) or 'none'} can be had: {'; '.join(obstacles)}",
        hint="`mamushka info` lists the runtimes that work here; a weaker wall must be asked for by name",
    )


def open_runtime(name: str, root: str, made: str) -> Runtime:
    """The wall itself, with its state under ``root``: what there is can be asked for and ended on any host.

    In ``made`` it keeps what it makes once for many workloads.
    """
    if name == "vm":
        from mamushka.engine.machines import open_machines

        return open_machines(f"{os.path.dirname(root)}/machines", cache=made)  # paths.machines
    reason = obstacle(name)
    if reason:
        raise Unsupported(f"runtime {name}: {reason}")
    from mamushka.container.runtime import ContainerRuntime

    return ContainerRuntime(root)


def preload(name: str = "container") -> None:
    """Import what a shim will need before it is forked; afterwards each would pay for it again, in time and memory."""
    if name == "vm":
        import mamushka.container.cgroups.cgroup
        import mamushka.machine.checkpoint
        import mamushka.machine.relay
        import mamushka.machine.runtime
        import mamushka.storage.remove
        from mamushka.machine import maker

        maker.preload()
        return
    import mamushka.container.creation
    import mamushka.container.runtime
    import mamushka.record
    import mamushka.storage.remove  # noqa: F401
