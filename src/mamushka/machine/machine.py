"""A machine: memory, buses with devices, virtual CPUs, and what holds them together.

One named thread for each virtual CPU, one for all devices (loop.py). A virtual CPU runs until it exits; the exit is
answered from the buses, counted, and it runs on. Everything that can happen to the machine as a whole is one of the
events of ``LIFE``, and whoever waits for its end waits for one value, ``End``.

Holding still (``pause``): every virtual CPU is between two instructions with nothing half done, in its own thread, and
the devices do nothing but what they are asked to (``Loop.hold``, ``Loop.call``). So what ``save`` sees fits together.
"""

from __future__ import annotations

import os
import threading

from mamushka import trace
from mamushka.errors import Conflict, GuestFault, MamushkaError
from mamushka.machine.bus import Bus
from mamushka.machine.loop import Loop
from mamushka.machine.vcpu import Debug, Halted, Interrupted, Read, Reset, Shutdown, Stuck, Write
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.memory import Memory
    from mamushka.machine.vcpu import Entry, Executor, Exit, Vcpu

MADE, RUNNING, PAUSED, ENDED = "made", "running", "paused", "ended"
LIFE = {
    MADE: {"start": RUNNING, "hold": PAUSED, "end": ENDED},
    RUNNING: {"pause": PAUSED, "end": ENDED},
    PAUSED: {"resume": RUNNING, "end": ENDED},
    ENDED: {},
}

# The kinds of threads in a process that holds a machine.
VCPU, DEVICES, CONTROL, DEBUGGER = "vcpu", "devices", "control", "debugger"

# How a machine ended.
OFF, REBOOT, FAULT, STUCK = "off", "reboot", "fault", "stuck"


@value
class End:
    """How a machine ended: switched off or rebooting by itself, or because of what its guest did; ``cause`` tells."""

    kind: str
    cause: str = ""
    status: int = 0  # where the guest gave one


class Machine:
    """Owns its executor, memory and loop. Devices are attached before ``start``."""

    def __init__(self, executor: Executor, memory: Memory, *, vcpus: int = 1) -> None:
        self.executor, self.memory = executor, memory
        self.bus, self.ports = Bus("memory"), Bus("port")
        for place in executor.places:
            self.bus.attach(place.start, place.length, place.registers, place.name)
        for region in memory:
            executor.map(region)
        self.vcpus: tuple[Vcpu, ...] = tuple(executor.vcpu(index) for index in range(vcpus))
        self.loop = Loop("devices", self._failed)
        self.stopped: Callable[[Vcpu, Debug], None] | None = None  # a debugger; called in the virtual CPU's thread
        self.exits: list[dict[str, int]] = [{} for _ in self.vcpus]  # of each virtual CPU, those that came here
        self.resumed: list[Callable[[], None]] = []  # devices that held still as well, since they were saved
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # guards all below
        self.state = MADE
        self.end: End | None = None
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable once it has ended
        self._parked = 0
        self._only: Vcpu | None = None  # the one that runs while all others stay paused

    # Life

    def _happen(self, event: str) -> None:
        following = LIFE[self.state].get(event)
        if following is None:
            raise Conflict(f"cannot {event} a machine that is {self.state}")
        self.state = following
        self._changed.notify_all()

    def start(
        self, entry: Entry | None = None, *, held: bool = False, confine: Callable[[str], None] | None = None
    ) -> None:
        """Let it run: from ``entry``, or from where its restored virtual CPUs are. ``held``: paused before the first
        instruction.

        ``confine`` is called in each thread, and in this one, with its kind: VCPU, DEVICES or CONTROL. Not before all
        of them have been does the guest's first instruction run; and this one can make no thread any more then.
        """
        if entry is not None:
            self.vcpus[0].enter(entry)
        with self._changed:
            self._happen("hold" if held else "start")
        confine = confine or _freely
        gate = threading.Barrier(len(self.vcpus) + 1)
        try:
            self._confined(confine, gate)
        except threading.BrokenBarrierError:  # one of the threads has ended it
            assert self.end is not None
            raise MamushkaError(f"the machine could not be started: {self.end.cause}") from None
        except BaseException as error:
            self._failed(error)
            gate.abort()
            raise

    def _confined(self, confine: Callable[[str], None], gate: threading.Barrier) -> None:
        """Make the threads, and wait until all are confined."""
        # First of all: no device is served, not even one that fails at once, before its thread is confined.
        self.loop.start(lambda: confine(DEVICES))
        for vcpu in self.vcpus:
            arguments = (vcpu, confine, gate)
            thread = threading.Thread(target=self._serve, args=arguments, name=f"vcpu {vcpu.index}", daemon=True)
            thread.start()
            self._threads.append(thread)
        confine(CONTROL)
        gate.wait()

    def pause(self) -> None:
        """Make it hold still; Conflict where it has ended. What was in the middle of an exit has been answered."""
        with self._changed:
            self._happen("pause")
            self._kick()
        self.settle()

    def hold(self) -> None:
        """Ask it to hold still and do not wait: for a virtual CPU's own thread, which stops before it runs on. Harmless
        where it does already, or has ended."""
        with self._changed:
            if self.state == RUNNING:
                self._happen("pause")
                self._kick()

    def settle(self) -> None:
        """Wait until it holds still, after ``hold``. Conflict where it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._parked == len(self.vcpus) or self.state == ENDED)
            if self.state == ENDED:
                raise Conflict("the machine has ended meanwhile")
        self.loop.hold()  # without the lock: the loop may be waiting for it

    def resume(self, only: Vcpu | None = None) -> None:
        """Let it run on, and its devices; with ``only`` this virtual CPU alone, for a debugger's single step."""
        for go_on in self.resumed:
            go_on()
        with self._changed:
            self._only = only
            self._happen("resume")
        self.loop.release()

    def finish(self, end: End) -> None:
        """End it. From any thread; the first end counts."""
        with self._changed:
            if self.state == ENDED:
                return
            self.end = end
            trace.event("machine.ended", kind=end.kind, cause=end.cause)
            self._happen("end")
            self._kick()
        os.eventfd_write(self.ended_fd, 1)

    def power(self, reboot: bool) -> None:
        """The guest asks to be switched off, or to begin again."""
        self.finish(End(REBOOT if reboot else OFF))

    def wait(self, timeout: float | None = None) -> End | None:
        """Until it has ended and no virtual CPU runs; None where that takes longer than ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.state == ENDED, timeout):
                return None
        for thread in self._threads:
            thread.join()
        return self.end

    def stop(self) -> None:
        """End it: no virtual CPU runs any more and no device is called. What they own can be closed now."""
        self.finish(End(OFF, "closed"))
        self.wait()
        self.loop.stop()
        self.executor.close()

    def close(self) -> None:
        """``stop``, and give the loop and the memory back; the devices' owner closes those between the two."""
        self.stop()
        self.loop.close()
        self.memory.close()
        os.close(self.ended_fd)

    def _kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def _failed(self, error: BaseException) -> None:
        kind = FAULT if isinstance(error, GuestFault) else STUCK
        self.finish(End(kind, str(error) or type(error).__name__))

    # Virtual CPUs

    def _serve(self, vcpu: Vcpu, confine: Callable[[str], None], gate: threading.Barrier) -> None:
        """The life of one virtual CPU's thread."""
        try:
            confine(VCPU)
            gate.wait()
        except BaseException as error:
            self._failed(error)
            gate.abort()  # those who wait for this one to be confined wait for nothing
            return
        try:
            while self._go_on(vcpu):
                self._answer(vcpu, vcpu.run())
        except BaseException as error:
            self._failed(error)

    def _go_on(self, vcpu: Vcpu) -> bool:
        """Whether to run: False at the end. Waits while the machine is paused."""
        if self.state == RUNNING and self._only is None:
            return True
        self._complete(vcpu)
        with self._changed:
            self._parked += 1
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self.state == ENDED or (self.state == RUNNING and self._only in (None, vcpu))
            )
            self._parked -= 1
            return self.state == RUNNING

    def _complete(self, vcpu: Vcpu) -> None:
        """Let the executor take the answer of the last exit in: only then is the instruction over, and the registers
        are what they say. KVM: Documentation/virt/kvm/api.rst 5, "KVM_EXIT_IO"."""
        while self.state != ENDED:
            vcpu.kick()
            exit = vcpu.run()
            if isinstance(exit, Interrupted):
                return
            self._answer(vcpu, exit)  # a part of the same instruction: string instructions have several

    def _answer(self, vcpu: Vcpu, exit: Exit) -> None:
        counts = self.exits[vcpu.index]
        kind = type(exit)
        counts[kind.__name__] = counts.get(kind.__name__, 0) + 1
        if kind is Write:
            assert isinstance(exit, Write)
            (self.ports if exit.port else self.bus).write(exit.address, exit.size, exit.value)
        elif kind is Read:
            assert isinstance(exit, Read)
            vcpu.complete((self.ports if exit.port else self.bus).read(exit.address, exit.size))
        elif kind is not Interrupted:
            self._seldom(vcpu, exit)

    def _seldom(self, vcpu: Vcpu, exit: Exit) -> None:
        if isinstance(exit, Shutdown):
            self.finish(End(REBOOT, "triple fault"))
        elif isinstance(exit, Reset):
            self.finish(End(REBOOT if exit.reboot else OFF, exit.cause))
        elif isinstance(exit, Halted):
            self.finish(End(OFF, "halted"))  # without interrupts nothing would ever wake it
        elif isinstance(exit, Debug) and self.stopped is not None:
            self.stopped(vcpu, exit)
        elif isinstance(exit, Stuck):
            detail = " ".join(f"{name}={number:#x}" for name, number in exit.detail.items())
            code = f", at {exit.code.hex(' ')}" if exit.code else ""
            self.finish(End(STUCK, f"{exit.reason}: {detail}{code}"))


def _freely(kind: str) -> None:
    """A thread that is not confined."""
