"""An executor of four instructions, for what a host's KVM may not do: nop, hlt, a short jump, and int3 for a debugger.

It keeps to the protocols of machine/vcpu.py, so that a debugger can be tried against it on every host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from mamushka.machine.memory import Memory
from mamushka.machine.vcpu import BREAKPOINT, EXECUTE, POINT, STEP, Debug, Exit, Halted, Interrupted, Point

NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
)  # fmt: skip
SYSTEM = (
    "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer",
)  # fmt: skip


class ToyVcpu:
    """rbx counts instructions. An int3 that is the guest's own counts in rcx."""

    def __init__(self, memory: Memory, index: int) -> None:
        self.index, self._memory = index, memory
        self._registers = dict.fromkeys(NAMES, 0)
        self._kicked = threading.Event()
        self._active = self._step = self._inject = False
        self._points: tuple[Point, ...] = ()
        self._leaving = -1  # a breakpoint of the processor's that it stopped at, and goes on from

    def run(self) -> Exit:
        while not self._kicked.is_set():
            exit = self._one()
            if exit is not None:
                return exit
            time.sleep(0.0001)
        self._kicked.clear()
        return Interrupted()

    def _one(self) -> Exit | None:
        place = self._registers["rip"]
        for number, point in enumerate(self._points):
            if point == Point(EXECUTE, place) and self._leaving != place:
                self._leaving = place
                return Debug(place, POINT, number)
        self._leaving = -1
        code = self._memory.read(place, 2)
        if code[0] == 0xF4:
            return Halted()
        if code[0] == 0xCC:
            if self._active and not self._inject:
                return Debug(place, BREAKPOINT)
            self._inject = False
            self._registers["rcx"] += 1
        jump = code[1] - (256 if code[1] > 127 else 0) + 1 if code[0] == 0xEB else 0
        self._registers["rip"] += 1 + jump
        self._registers["rbx"] += 1
        return Debug(self._registers["rip"], STEP) if self._step else None

    def complete(self, value: int) -> None:
        raise NotImplementedError

    def kick(self) -> None:
        self._kicked.set()

    def registers(self) -> dict[str, int]:
        return dict(self._registers)

    def set_registers(self, registers: Mapping[str, int]) -> None:
        self._registers.update(registers)

    def system_registers(self) -> dict[str, int]:
        return dict.fromkeys(SYSTEM, 0)

    def translate(self, address: int) -> int:
        return address

    def debug(self, active: bool, *, step: bool = False, points: tuple[Point, ...] = (), inject: bool = False) -> None:
        self._active, self._step, self._points, self._inject = active, step, points, inject


class ToyExecutor:
    """What a Machine asks of an executor, less what no toy needs."""

    name, places = "toy", ()

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def map(self, _region: object) -> None:
        pass

    def vcpu(self, index: int) -> ToyVcpu:
        return ToyVcpu(self._memory, index)

    def close(self) -> None:
        pass
