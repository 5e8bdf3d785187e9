"""A machine as a debugger sees it: virtual CPUs that stop and go, memory by virtual addresses, breakpoints.

All calls but ``_stopped`` come from the debugger's one thread, and but for ``interrupt`` while the machine holds still.

A breakpoint of a program is one instruction's bytes in guest memory; reads show what was there before. What the guest
has of its own (a kernel's int3 is a tool of its own) is let through to it. One of the processor's is a debug register.
"""

from __future__ import annotations

import os
from collections import deque

from mamushka.errors import Conflict, Invalid, MamushkaError
from mamushka.machine.machine import ENDED, OFF, PAUSED, RUNNING, End
from mamushka.machine.vcpu import ACCESS, BREAKPOINT, EXECUTE, POINT, WRITE, Point
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.gdb.architecture import Architecture
    from mamushka.machine.machine import Machine
    from mamushka.machine.vcpu import Debug, Vcpu

PAGE = 4096  # the smallest stretch that one translation holds for
BREAKPOINTS_MAX = 1024


@value
class Stop:
    """Virtual CPU ``index`` has stopped: ``reason`` is BREAKPOINT, STEP, EXECUTE, WRITE, ACCESS or empty."""

    index: int
    reason: str = ""
    address: int = 0  # for WRITE and ACCESS


class Target:
    """One debugger's hold on a machine; ``detach`` leaves it as it would be without."""

    def __init__(self, machine: Machine, architecture: Architecture) -> None:
        self._machine, self.architecture = machine, architecture
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable once a virtual CPU has stopped
        self._stops: deque[tuple[Vcpu, Debug]] = deque()
        self._planted: dict[int, tuple[int, bytes]] = {}  # virtual address: physical one, what was there
        self._points: tuple[Point, ...] = ()

    @property
    def ended_fd(self) -> int:
        """Readable once the machine has ended."""
        return self._machine.ended_fd

    @property
    def end(self) -> End | None:
        """How the machine ended, once it has."""
        return self._machine.end

    @property
    def count(self) -> int:
        """Virtual CPUs."""
        return len(self._machine.vcpus)

    def attach(self) -> None:
        """Stop the machine, where it runs, and be told of stops. Conflict where it has ended or has not been started,
        or somebody debugs it already."""
        if self._machine.stopped is not None:
            raise Conflict("a debugger is attached to this machine already")
        if self._machine.state not in (RUNNING, PAUSED):
            raise Conflict(f"a machine that is {self._machine.state} cannot be debugged")
        self._machine.hold()
        self._machine.settle()
        self._forget_stops()
        self._machine.stopped = self._stopped
        self._arm(-1)

    def detach(self, *, go: bool = True) -> None:
        """Take breakpoints out and, with ``go``, let the machine run. Harmless where it has ended."""
        try:
            if self._machine.state != ENDED:
                self.interrupt()
                self._machine.settle()
                for address in tuple(self._planted):
                    self.remove_breakpoint(address)
                for vcpu in self._machine.vcpus:
                    vcpu.debug(False)
                self._machine.stopped = None
                if go:
                    self._machine.resume()
        except Conflict:
            pass  # it has ended meanwhile
        self._machine.stopped = None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.wake)

    # Stop and go

    def _stopped(self, vcpu: Vcpu, exit: Debug) -> None:
        """In the virtual CPU's thread; it holds still before it runs on."""
        if exit.reason == BREAKPOINT and exit.address not in self._planted:
            vcpu.debug(True, points=self._points, inject=True)
            return
        self._stops.append((vcpu, exit))
        self._machine.hold()
        os.eventfd_write(self.wake, 1)

    def resume(self, stepping: int = -1, *, alone: bool = False) -> None:
        """Let it run; ``stepping`` does one instruction and stops, with ``alone`` while all others stay stopped."""
        self._stops.clear()
        self._arm(stepping)
        self._machine.resume(self._machine.vcpus[stepping] if alone and stepping >= 0 else None)

    def _arm(self, stepping: int) -> None:
        for vcpu in self._machine.vcpus:
            vcpu.debug(True, step=vcpu.index == stepping, points=self._points)

    def interrupt(self) -> None:
        """Make it stop; ``stop`` tells the rest."""
        self._machine.hold()

    def stop(self) -> Stop:
        """Wait until all hold still, and say why: of several that stopped at once the first, the others stop again.

        Conflict where the machine has ended.
        """
        self._machine.settle()
        first = self._stops[0] if self._stops else None
        self._forget_stops()  # a breakpoint stops before its instruction: the others come to theirs again
        if first is None:
            return Stop(0)
        vcpu, exit = first
        if exit.reason != POINT:
            return Stop(vcpu.index, exit.reason)
        point = self._points[exit.point] if exit.point < len(self._points) else Point(EXECUTE, exit.address)
        return Stop(vcpu.index, point.kind, point.address)

    def _forget_stops(self) -> None:
        """Once all hold still, so that none comes in between."""
        self._stops.clear()
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            pass

    def kill(self) -> None:
        """End the machine."""
        self._machine.finish(End(OFF, "ended by its debugger"))

    # Registers and memory, of one virtual CPU

    def registers(self, index: int) -> dict[str, int]:
        """All that there are."""
        vcpu = self._machine.vcpus[index]
        return {**vcpu.system_registers(), **vcpu.registers()}

    def set_register(self, index: int, name: str, number: int) -> None:
        """Change one of the general ones."""
        self._machine.vcpus[index].set_registers({name: number})

    def read(self, index: int, address: int, length: int) -> bytes:
        """Bytes at a virtual address, without our breakpoints; fewer where something is not mapped. MamushkaError where
        the first one is not."""
        found = bytearray()
        while len(found) < length:
            at = address + len(found)
            part = min(length - len(found), PAGE - at % PAGE)
            try:
                gpa = self._machine.vcpus[index].translate(at)
                found += self._shown(gpa, part)
            except MamushkaError:
                if not found:
                    raise
                break
        return bytes(found)

    def _shown(self, gpa: int, length: int) -> bytearray:
        data = bytearray(self._machine.memory.read(gpa, length))
        for place, original in self._planted.values():
            for offset, byte in enumerate(original):
                if gpa <= place + offset < gpa + length:
                    data[place + offset - gpa] = byte
        return data

    def write(self, index: int, address: int, data: bytes) -> None:
        """Change bytes at a virtual address. MamushkaError where not all can be, and some may have been."""
        done = 0
        while done < len(data):
            at = address + done
            part = data[done : done + PAGE - at % PAGE]
            gpa = self._machine.vcpus[index].translate(at)
            self._machine.memory.write(gpa, part)
            for virtual, (place, original) in tuple(self._planted.items()):
                if place < gpa + len(part) and gpa < place + len(original):  # written into: it stays, over what is new
                    self._planted[virtual] = place, bytes(self._machine.memory.read(place, len(original)))
                    self._machine.memory.write(place, self.architecture.breakpoint)
            done += len(part)

    # Breakpoints

    def plant(self, index: int, address: int) -> None:
        """A breakpoint in the program; a second time harmless. MamushkaError where memory cannot be written."""
        if address in self._planted:
            return
        if len(self._planted) >= BREAKPOINTS_MAX:
            raise Invalid(f"more than {BREAKPOINTS_MAX} breakpoints")
        code = self.architecture.breakpoint
        gpa = self._machine.vcpus[index].translate(address)
        original = bytes(self._shown(gpa, len(code)))
        self._machine.memory.write(gpa, code)
        self._planted[address] = gpa, original

    def remove_breakpoint(self, address: int) -> None:
        """Take it out again; harmless where there is none."""
        planted = self._planted.pop(address, None)
        if planted is not None:
            gpa, original = planted
            if any(place == gpa for place, _ in self._planted.values()):
                return  # the same memory has one by another address
            # Not where the guest has written over it meanwhile: that is no breakpoint any more.
            if bytes(self._machine.memory.read(gpa, len(original))) == self.architecture.breakpoint:
                self._machine.memory.write(gpa, original)

    def watch(self, kind: str, address: int, length: int) -> None:
        """Let the processor look out. Unsupported where it cannot, or for any more."""
        point = Point(kind, address, 1 if kind == EXECUTE else length)
        if point not in self._points:
            self._look_out((*self._points, point))

    def unwatch(self, kind: str, address: int, length: int) -> None:
        """And no longer."""
        gone = Point(kind, address, 1 if kind == EXECUTE else length)
        self._look_out(tuple(point for point in self._points if point != gone))

    def _look_out(self, points: tuple[Point, ...]) -> None:
        before, self._points = self._points, points
        try:
            self._arm(-1)
        except MamushkaError:
            self._points = before
            self._arm(-1)
            raise


KINDS = {b"1": EXECUTE, b"2": WRITE, b"3": ACCESS, b"4": ACCESS}  # of Z packets; x86 cannot look out for reads alone
