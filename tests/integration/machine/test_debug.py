"""What a debugger needs of a virtual CPU: breakpoints, steps, addresses, and one that runs while the others wait."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from mamushka.errors import NotFound, Unsupported
from mamushka.machine.machine import OFF, PAUSED, Machine
from mamushka.machine.vcpu import BREAKPOINT, EXECUTE, POINT, STEP, WRITE, Debug, Entry, Point
from tests.integration.machine.guests import START, assemble, emulated, in_hardware, machine, needs_kvm, protected

if TYPE_CHECKING:
    from mamushka.machine.vcpu import Vcpu

pytestmark = needs_kvm

CODE = """
    mov eax, 1
    mov ebx, 2
    mov [0x4000], eax
    add eax, ebx
    hlt
"""
PLACES = (START, START + 5, START + 10, START + 15, START + 17)  # of the five instructions


class Stops:
    """Holds the machine at every stop and remembers it."""

    def __init__(self, made: Machine) -> None:
        self.machine, self.seen = made, threading.Semaphore(0)
        self.last: Debug | None = None
        made.stopped = self.stopped

    def stopped(self, vcpu: Vcpu, exit: Debug) -> None:
        self.last = exit
        self.machine.hold()
        self.seen.release()

    def go(self, only: Vcpu | None = None) -> Debug:
        self.machine.resume(only)
        assert self.seen.acquire(timeout=10), f"it does not stop: {self.machine.end}"
        self.machine.settle()
        assert self.last is not None
        return self.last


def test_steps_one_by_one() -> None:
    with machine(assemble(CODE), interrupts=False) as made:
        stops = Stops(made)
        made.start(protected(), held=True)
        assert made.state == PAUSED
        vcpu = made.vcpus[0]
        vcpu.debug(True, step=True)
        for place in PLACES[1:4]:
            exit = stops.go(vcpu)
            assert (exit.reason, exit.address, vcpu.registers()["rip"]) == (STEP, place, place)
        assert vcpu.registers()["rbx"] == 2
        vcpu.debug(False)
        made.resume()
        end = made.wait(10)
        assert end is not None and end.kind == OFF


@pytest.mark.skipif(emulated(), reason="a nested guest's debug registers do nothing under QEMU's TCG")
def test_the_processor_looks_out_for_instructions() -> None:
    with machine(assemble(CODE), interrupts=False) as made:
        stops = Stops(made)
        made.start(protected(), held=True)
        made.vcpus[0].debug(True, points=(Point(EXECUTE, PLACES[3]), Point(EXECUTE, PLACES[1])))
        exit = stops.go()
        assert (exit.reason, exit.address, exit.point) == (POINT, PLACES[1], 1)
        with pytest.raises(Unsupported):
            made.vcpus[0].debug(True, points=(Point(WRITE, 0x4000, 4),) * 5)


def test_the_processor_looks_out_for_writes() -> None:
    in_hardware()
    with machine(assemble(CODE), interrupts=False) as made:
        stops = Stops(made)
        made.start(protected(), held=True)
        vcpu = made.vcpus[0]
        vcpu.debug(True, points=(Point(WRITE, 0x4000, 4),))
        exit = stops.go()
        assert (exit.reason, exit.point, vcpu.registers()["rip"]) == (POINT, 0, PLACES[3])
        made.resume()
        assert made.wait(10) is not None


def test_addresses() -> None:
    with machine(assemble("hlt"), interrupts=False) as made:
        vcpu = made.vcpus[0]
        vcpu.enter(protected())
        assert vcpu.translate(0x1234) == 0x1234
        system = vcpu.system_registers()
        assert (system["cs"], system["cr0"] & 1, system["cr3"]) == (0x10, 1, 0)
        vcpu.enter(Entry("long", {"rip": START}, cr3=0x7000))  # tables of zeros
        with pytest.raises(NotFound):
            vcpu.translate(0x1234)


def test_a_breakpoint_instruction() -> None:
    in_hardware()
    with machine(assemble("mov eax, 1\n int3\n hlt"), interrupts=False) as made:
        stops = Stops(made)
        made.start(protected(), held=True)
        made.vcpus[0].debug(True)
        exit = stops.go()
        assert (exit.reason, exit.address) == (BREAKPOINT, START + 5)
        made.vcpus[0].set_registers({"rip": START + 6})
        made.resume()
        assert made.wait(10) is not None
