"""A machine whose threads cannot all be confined does not begin, tells why, and can be given back."""

from __future__ import annotations

import os
import threading
import time

import pytest

from mamushka.errors import GuestFault, MamushkaError
from mamushka.machine.computer import Worker
from mamushka.machine.machine import CONTROL, DEVICES, ENDED, FAULT, STUCK, VCPU, End, Machine
from mamushka.machine.memory import Memory
from mamushka.machine.vcpu import Interrupted


class Idle:
    """A virtual CPU that would tell if it ran."""

    def __init__(self, index: int) -> None:
        self.index, self.ran = index, False

    def run(self) -> Interrupted:
        self.ran = True
        return Interrupted()

    def kick(self) -> None:
        pass


class Executor:
    """What a machine asks of one."""

    places = ()

    def vcpu(self, index: int) -> Idle:
        return Idle(index)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", (VCPU, DEVICES, CONTROL))
def test_a_thread_that_cannot_be_confined_stops_the_start(kind: str) -> None:
    others = set(threading.enumerate())
    machine = Machine(Executor(), Memory(), vcpus=3)  # type: ignore[arg-type]
    met = threading.Lock()  # the first of its kind alone: the others wait at the gate

    def confine(this: str) -> None:
        if this == kind and met.acquire(blocking=False):
            raise OSError(22, "seccomp: Invalid argument")

    raised: list[BaseException] = []

    def start() -> None:
        try:
            machine.start(confine=confine)
        except (OSError, MamushkaError) as error:
            raised.append(error)

    control = threading.Thread(target=start, daemon=True)
    control.start()
    control.join(5)
    assert not control.is_alive(), "the start waits for a thread that will never be confined"
    assert len(raised) == 1 and "seccomp" in str(raised[0])
    assert machine.state == ENDED and machine.end is not None
    assert machine.end.kind == STUCK and "seccomp" in machine.end.cause
    machine.close()
    assert not any(vcpu.ran for vcpu in machine.vcpus)  # type: ignore[attr-defined]
    assert not any(thread.name.startswith(("vcpu", "devices")) for thread in set(threading.enumerate()) - others)


def test_a_worker_is_confined_before_anybody_goes_on() -> None:
    names: list[str] = []
    worker = Worker("patient")

    def confine() -> None:
        time.sleep(0.05)
        names.append(threading.current_thread().name)

    worker.start(confine)
    assert names == ["patient"]
    done = threading.Event()
    worker.do(done.set)
    assert done.wait(5)


def test_a_worker_that_cannot_be_confined_does_nothing() -> None:
    def refused() -> None:
        raise OSError(22, "seccomp: Invalid argument")

    worker = Worker("unconfined")
    with pytest.raises(OSError, match="seccomp"):
        worker.start(refused)
    done = threading.Event()
    worker.do(done.set)
    assert not done.wait(0.1)


def test_a_device_that_fails_at_once_changes_nobodys_confinement() -> None:
    """It ends the machine. But no thread is confined a second time: what is forbidden would end the whole process."""
    machine = Machine(Executor(), Memory(), vcpus=2)  # type: ignore[arg-type]
    fd = os.eventfd(1, os.EFD_CLOEXEC)
    confined: list[tuple[str, str]] = []

    def fail(_events: int) -> None:
        raise GuestFault("a broken ring")

    def confine(kind: str) -> None:
        confined.append((threading.current_thread().name, kind))
        time.sleep(0.05)  # time for it to fail

    machine.loop.watch(fd, fail)
    machine.start(confine=confine)
    assert machine.wait(5) == End(FAULT, "a broken ring")
    machine.close()
    here = threading.current_thread().name
    assert sorted(confined) == sorted((("devices", DEVICES), ("vcpu 0", VCPU), ("vcpu 1", VCPU), (here, CONTROL)))
    os.close(fd)
