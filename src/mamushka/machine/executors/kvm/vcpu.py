"""A virtual CPU of KVM's: a descriptor, and a page that the kernel and its owner share.

Nothing is allocated for what the guest does without us; for an exit, one small value. Signals end a run: whoever wants
the virtual CPU to stop sets ``immediate_exit`` and signals its thread. The flag holds where the signal comes a moment
too early, and the signal where the flag does.
"""

from __future__ import annotations

import os
import threading
from _signal import SIG_DFL, SIG_IGN, SIGRTMAX, getsignal, signal  # type: ignore[import-not-found]

from mamushka.errors import NotFound
from mamushka.linux import kvm, kvm_x86
from mamushka.linux.abi import at, sizeof
from mamushka.linux.memory import MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap, view_of
from mamushka.linux.process import tgkill
from mamushka.machine.executors.kvm import x86, x86_debug
from mamushka.machine.vcpu import Halted, Interrupted, Read, Reset, Shutdown, Stuck, Write
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.machine.vcpu import Entry, Exit, Point

# It needs a handler, or it would end the process; the handler has nothing to do: the call it interrupts returns.
# The last of them all, because every other one that comes to this process may be meant for the guest's program.
KICK = SIGRTMAX
_ARMS = sizeof(kvm.kvm_run)
_INTERNAL_ERRORS = {
    1: "an instruction that KVM cannot emulate",
    2: "two exceptions at once",
    3: "an event not delivered",
}


def prepare_to_kick() -> None:
    """Let ``KICK`` interrupt a system call and do nothing else. The first time by the main thread."""
    if getsignal(KICK) in (SIG_DFL, SIG_IGN, None):
        signal(KICK, lambda *_: None)


class KvmVcpu:
    """A virtual CPU. ``registers`` and the like are for its owner while it is not running."""

    def __init__(self, kvm_fd: int, vm: int, index: int, cpuid: bytes, *, interrupts: bool) -> None:
        self.index = index
        self._kvm = kvm_fd
        self._vm = vm
        self._interrupts = interrupts
        self.fd = kvm.KVM_CREATE_VCPU(vm, index)
        self._size = kvm.KVM_GET_VCPU_MMAP_SIZE(kvm_fd, 0)
        address = mmap(0, self._size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        self._address = address
        self._page = view_of(address, self._size)
        self._run = at(kvm.kvm_run, address)
        self._io = at(kvm.kvm_run_io, address + _ARMS)
        self._mmio = at(kvm.kvm_run_mmio, address + _ARMS)
        self._data = self._page[_ARMS + 8 : _ARMS + 16]  # of kvm_run_mmio
        self._thread = 0
        self._answer = self._data[:0]  # where the last Read's answer goes
        self._elements = 0  # of a string instruction, still to be told one by one
        self._element = 0
        self._points = 0  # that a debugger asked for
        x86.identify(self.fd, cpuid, index, interrupts=interrupts)

    # Running

    def run(self) -> Exit:
        """Let the guest run until it exits."""
        if self._elements > 1:
            self._elements -= 1
            self._element += 1
            return self._port()
        self._elements = 0
        self._thread = threading.get_native_id()
        try:
            kvm.KVM_RUN(self.fd, 0)
        except InterruptedError:
            self._run.immediate_exit = 0
            return Interrupted()
        except BlockingIOError:  # EAGAIN: it was waiting to be started, and was
            return Interrupted()
        reason = self._run.exit_reason
        if reason == kvm.KVM_EXIT_MMIO:
            return self._memory()
        if reason == kvm.KVM_EXIT_IO:
            self._elements, self._element = self._io.count, 0
            return self._port()
        return self._seldom(reason)

    def _memory(self) -> Exit:
        mmio = self._mmio
        size = mmio.len
        if mmio.is_write:
            return Write(mmio.phys_addr, size, int.from_bytes(self._data[:size], "little"))
        self._answer = self._data[:size]
        return Read(mmio.phys_addr, size)

    def _port(self) -> Exit:
        io = self._io
        start = io.data_offset + self._element * io.size
        data = self._page[start : start + io.size]
        if io.direction == kvm.KVM_EXIT_IO_OUT:
            return Write(io.port, io.size, int.from_bytes(data, "little"), port=True)
        self._answer = data
        return Read(io.port, io.size, port=True)

    def _seldom(self, reason: int) -> Exit:
        if reason == kvm.KVM_EXIT_HLT:
            return Halted()
        if reason == kvm.KVM_EXIT_SHUTDOWN:
            return Shutdown()
        if reason in (kvm.KVM_EXIT_INTR, kvm.KVM_EXIT_IOAPIC_EOI):  # nobody waits for the end of an edge
            return Interrupted()
        if reason == kvm.KVM_EXIT_DEBUG:
            debug = at(kvm_x86.kvm_debug_exit_arch, self._address + _ARMS)
            return x86_debug.stopped(debug, self._points)
        if reason == kvm.KVM_EXIT_SYSTEM_EVENT:
            event = at(kvm.kvm_run_system_event, self._address + _ARMS)
            return Reset(reboot=event.type == kvm.KVM_SYSTEM_EVENT_RESET, cause=f"system event {event.type}")
        if reason == kvm.KVM_EXIT_INTERNAL_ERROR:
            return self._internal()
        if reason == kvm.KVM_EXIT_FAIL_ENTRY:
            entry = at(kvm.kvm_run_fail_entry, self._address + _ARMS)
            return Stuck("the processor refuses the guest's state", {"reason": entry.hardware_entry_failure_reason})
        return Stuck(f"an exit that nobody expected, {reason}", EMPTY)

    def _internal(self) -> Exit:
        error = at(kvm.kvm_run_internal, self._address + _ARMS)
        data = bytes(self._page[_ARMS + 8 : _ARMS + 136])
        # With the first word's bit 0 (of flags) a length and up to 15 bytes of instruction follow it. kvm.h
        code = data[9 : 9 + data[8]] if error.suberror == 1 and error.ndata >= 4 and data[8] <= 15 else b""
        reason = _INTERNAL_ERRORS.get(error.suberror, "an internal error")
        return Stuck(reason, {"suberror": error.suberror, "rip": self.registers()["rip"]}, code)

    def complete(self, value: int) -> None:
        """Answer the Read that ``run`` gave."""
        answer = self._answer
        answer[:] = (value & (1 << 8 * len(answer)) - 1).to_bytes(len(answer), "little")

    def kick(self) -> None:
        """Make ``run`` return soon."""
        self._run.immediate_exit = 1
        if self._thread:
            try:
                tgkill(os.getpid(), self._thread, KICK)
            except ProcessLookupError:
                pass  # the thread has ended

    # State

    def enter(self, entry: Entry) -> None:
        """Take the state in which it begins."""
        x86.enter(self.fd, entry)

    def registers(self) -> dict[str, int]:
        """The general registers, rip and rflags."""
        return x86.registers(self.fd)

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """Change some of them."""
        x86.set_registers(self.fd, registers)

    def system_registers(self) -> dict[str, int]:
        """Segments, control registers, bases."""
        return x86.system_registers(self.fd)

    def translate(self, address: int) -> int:
        """Where a guest-virtual address lies now. NotFound where nothing is mapped."""
        walk = kvm.kvm_translation(linear_address=address)
        kvm.KVM_TRANSLATE(self.fd, walk)
        if not walk.valid:
            raise NotFound(f"nothing is mapped at {address:#x}")
        return walk.physical_address

    def debug(self, active: bool, *, step: bool = False, points: tuple[Point, ...] = (), inject: bool = False) -> None:
        """What to stop for from the next run on."""
        self._points = len(points)
        x86_debug.debug(self.fd, active, step=step, points=points, inject=inject)

    def save(self) -> dict[str, bytes]:
        """Everything, in the kernel's own layouts."""
        return x86.save(self._kvm, self._vm, self.fd, interrupts=self._interrupts)

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take it."""
        x86.restore(self.fd, state)

    def close(self) -> None:
        """Unmap the page and close the descriptor."""
        if self.fd >= 0:
            self._answer.release()
            self._data.release()
            self._page.release()
            munmap(self._address, self._size)
            os.close(self.fd)
            self.fd = -1
