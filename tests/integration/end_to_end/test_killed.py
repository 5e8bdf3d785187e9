"""SIGKILL at every step: the next command succeeds, and nothing is left behind.

Every step of the engine is a traced event. A child process does the work and kills itself at its first event, the
next child at its second, and so on until one comes through; shims are forked from the child and count along. After
each death the parent, a process that knows nothing of it, uses the engine as if nothing had happened.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import pytest

import mamushka
from mamushka.engine.engine import Engine
from mamushka.runtime import Exit

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS_MAX = 400  # more events than any operation has: a loop that never comes through is a bug of its own


BEREFT = 3  # the shim reached the step first, and its starter was told in words


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that dies at its ``step``-th event; whether it died."""
    child = os.fork()
    if child == 0:
        _die_at(step)
        try:
            work()
        except mamushka.MamushkaError as error:
            print(f"step {step}: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(BEREFT)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, BEREFT, -signal.SIGKILL), f"the work itself failed at step {step}"
    return code != 0


def _die_at(step: int) -> None:
    from mamushka import trace

    left = step

    def count(_name: str, _fields: dict[str, object]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    trace.subscribe(count)


def every_step(work: Callable[[], object], after: Callable[[], None]) -> int:
    """Kill at each step in turn, and look after each; the number of steps."""
    for step in range(1, STEPS_MAX):
        died = killed_at(step, work)
        after()
        if not died:
            return step - 1
    raise AssertionError(f"still dying after {STEPS_MAX} steps")


def clear(roots: tuple[str, str]) -> None:
    """Remove every workload that a death left; each removal must succeed."""
    with Engine(*roots) as engine:
        engine.reconcile()
        for workload in engine.workloads(all=True):
            engine.remove(workload.id, force=True, volumes=True)
        assert engine.workloads(all=True) == []


def test_a_run_killed_at_every_step(roots: tuple[str, str], busybox_reference: str, untouched: None) -> None:
    with Engine(*roots) as engine:
        mamushka.pull(busybox_reference, engine=engine)
        assert mamushka.once(busybox_reference, "true", engine=engine).returncode == 0

    def work() -> None:
        with Engine(*roots) as engine:
            assert mamushka.once(busybox_reference, "true", ports=[80], engine=engine).returncode == 0

    def after() -> None:
        with Engine(*roots) as engine:
            assert mamushka.once(busybox_reference, "echo", "on", network="none", engine=engine).stdout == "on\n"
        clear(roots)

    assert every_step(work, after) > 5


def test_a_life_killed_at_every_step(roots: tuple[str, str], busybox_reference: str, untouched: None) -> None:
    with Engine(*roots) as engine:
        mamushka.pull(busybox_reference, engine=engine)

    def work() -> None:
        with Engine(*roots) as engine, mamushka.run(busybox_reference, "sleep", "60", engine=engine) as box:
            box.exec("true")
            box.pause()
            box.resume()
            box.kill()
            box.wait(20)
            box.start()
            box.stop(0)

    assert every_step(work, lambda: clear(roots)) > 5


def test_a_pull_killed_at_every_step(roots: tuple[str, str], layered_reference: str) -> None:
    def work() -> None:
        with Engine(*roots) as engine:
            mamushka.pull(layered_reference, engine=engine)
            engine.images.remove(layered_reference, force=True)

    def after() -> None:
        with Engine(*roots) as engine:
            mamushka.pull(layered_reference, engine=engine)
            done = mamushka.once(layered_reference, "whole", network="none", engine=engine)
            assert done.stdout == "whole\n"
            engine.images.remove(layered_reference, force=True)

    assert every_step(work, after) > 3


def test_a_workload_goes_on_without_its_shim_and_its_end_is_told_as_unknown(
    engine: Engine, busybox_reference: str, untouched: None
) -> None:
    with mamushka.run(busybox_reference, "sleep", "60", engine=engine) as box:
        init = box.inspect().pid
        with open(f"/proc/{init}/stat") as file:
            shim = int(file.read().rpartition(")")[2].split()[1])
        assert shim != os.getpid()
        os.kill(shim, signal.SIGKILL)
        with pytest.raises(TimeoutError):
            box.wait(0.5)
        assert box.status == "running"
        box.stop(0)
        assert box.inspect().exit == Exit(code=255)
        assert "shim was killed" in box.inspect().error
        box.start()
        assert box.exec("true").returncode == 0
