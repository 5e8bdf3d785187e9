"""What is counted of a machine beyond what its cgroup knows: why the processor left the guest, and what that took."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.machine.runtime import MachineRuntime
    from mamushka.machine.statistics import Sample

MACHINE = "vm"


def sample(engine: Engine, identifier: str) -> Sample | None:
    """What was counted since the machine began; None for a workload that is none. NotRunning where it has ended."""
    workload = engine.inspect(identifier)
    return _machines(engine).sample(workload.id) if workload.runtime == MACHINE else None


def began(engine: Engine, workload: Workload) -> str:
    """``warm`` or ``cold``: from where a machine began; empty for what is none, or cannot be asked now."""
    from mamushka.errors import Conflict, NotFound, Unavailable
    from mamushka.runtime import NotRunning

    if workload.runtime != MACHINE or workload.status != "running":
        return ""
    try:
        return str(_machines(engine).ask(workload.id, "began"))
    except (NotRunning, NotFound, Conflict, Unavailable):  # it has ended meanwhile, or holds still
        return ""


def debug(engine: Engine, identifier: str, connection: int) -> None:
    """Hand a debugger's connection, which stays the caller's, to a machine, which holds still then."""
    check(engine, identifier)
    _machines(engine).debug(engine.inspect(identifier).id, connection)


def check(engine: Engine, identifier: str) -> None:
    """Invalid for a workload that is no machine, Conflict for one that does not run."""
    from mamushka.engine.ending import running
    from mamushka.errors import Invalid

    workload = running(engine, identifier)
    if workload.runtime != MACHINE:
        raise Invalid(
            f"{identifier} is no machine: it runs behind the wall {workload.runtime}",
            hint="a container's programs are debugged on this host: gdb -p PID",
        )


def _machines(engine: Engine) -> MachineRuntime:
    from mamushka.machine.runtime import MachineRuntime

    runtime = engine.runtime(MACHINE)
    assert isinstance(runtime, MachineRuntime)
    return runtime
