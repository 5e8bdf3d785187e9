"""What kind of KVM this host has, found out by running a few instructions: it takes a millisecond or two.

Not every /dev/kvm can run an operating system. Some are modules that only look like it, with the guest's kernel mode
interpreted, a thousand times slower than its programs, and with system calls that never arrive. What says so is the
guest itself: it counts down in kernel mode while we look at the clock, enters user mode and makes a system call.

The instructions are those of ``probe_x86_64.s``; a test assembles and compares them.
"""

from __future__ import annotations

import os
import time
from struct import pack

from mamushka.errors import GuestFault, MamushkaError, Unsupported
from mamushka.machine.executors.kvm.executor import DEVICE, KvmExecutor
from mamushka.machine.memory import Memory, Region
from mamushka.machine.vcpu import Entry, Interrupted, Write
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.vcpu import Vcpu

HARDWARE, NESTED, SOFTWARE, ABSENT = "hardware", "nested", "software", "absent"

_CODE = bytes.fromhex(
    "e680e680b9f401000090ffc975fbe680b9800000c00f3283c8010f30b9810000c031c0ba100023000f30b9820000c0b85110000031d20f30"
    "b9840000c031c00f30b94f10000041bb02000000480f070f058cc8e681f4"
)
_START, _TABLES, _LENGTH = 0x1000, 0x2000, 0x5000
_ENDED, _ARRIVED = 0x80, 0x81
_KERNEL = 0x10  # the code segment that STAR names
_INSTRUCTIONS = 1500
# Hardware takes less than one for an instruction, under emulation some tens; an interpreter in the kernel a thousand.
_NANOSECONDS_MAX = 200.0
# What this thread was given of a processor is counted, but the host's own host may have taken that away meanwhile: who
# looks slow may try again, for some twenty milliseconds.
_FURTHER = 7


@value
class Probe:
    """``kind`` and, where it is not hardware, why it matters; nanoseconds of an instruction in a guest's kernel."""

    kind: str
    reason: str = ""
    nanoseconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether an operating system can run here."""
        return self.kind in (HARDWARE, NESTED)


def probe(device: str = DEVICE) -> Probe:
    """Try it out."""
    if os.uname().machine != "x86_64":
        return Probe(ABSENT, f"machines on {os.uname().machine} are not part of this version")
    try:
        best, arrived = _attempt(device)
        for _ in range(_FURTHER):
            if not arrived or best <= _NANOSECONDS_MAX * _INSTRUCTIONS:
                break
            best, arrived = min((best, arrived), _attempt(device))
    except Unsupported as error:
        return Probe(ABSENT, str(error))
    except (OSError, MamushkaError) as error:
        return Probe(SOFTWARE, f"a machine of a few instructions does not run: {error}")
    speed = best / _INSTRUCTIONS
    if not arrived:
        return Probe(SOFTWARE, "a guest's programs cannot call its kernel: this KVM cannot run a stock kernel", speed)
    if speed > _NANOSECONDS_MAX:
        return Probe(SOFTWARE, f"a guest's kernel is interpreted, {speed:.0f} ns an instruction", speed)
    return Probe(NESTED, "the host is a virtual machine itself", speed) if _virtual() else Probe(HARDWARE, "", speed)


def _attempt(device: str) -> tuple[float, bool]:
    """(nanoseconds of the loop, whether the system call arrived in the kernel)."""
    memory = Memory((Region(0, _LENGTH),))
    try:
        executor = KvmExecutor(interrupts=False, device=device)
    except BaseException:
        memory.close()
        raise
    try:
        memory.write(_START, _CODE)
        # One page table of each level; a large page for all; present, writable, for users too.
        memory.write(_TABLES, pack("<Q", _TABLES + 0x1007))
        memory.write(_TABLES + 0x1000, pack("<Q", _TABLES + 0x2007))
        memory.write(_TABLES + 0x2000, pack("<Q", 0x87))
        for region in memory:
            executor.map(region)
        vcpu = executor.vcpu(0)
        vcpu.enter(Entry("long", {"rip": _START, "rsp": _TABLES}, cr3=_TABLES))
        _lap(vcpu)
        alone = _lap(vcpu)
        elapsed = max(0, _lap(vcpu) - alone)
        exit = vcpu.run()
        while isinstance(exit, Interrupted):
            exit = vcpu.run()
        arrived = isinstance(exit, Write) and exit.address == _ARRIVED and exit.value & 0xFF == _KERNEL
        return elapsed, arrived
    finally:
        executor.close()
        memory.close()


def _lap(vcpu: Vcpu) -> int:
    """Nanoseconds of this thread's until the next mark. GuestFault where it does not come."""
    begin = time.thread_time_ns()
    exit = vcpu.run()
    while isinstance(exit, Interrupted):
        exit = vcpu.run()
    if not (isinstance(exit, Write) and exit.address == _ENDED):
        raise GuestFault(f"it stopped at {exit}")
    return time.thread_time_ns() - begin


def _virtual() -> bool:
    """Whether this host says that it is a guest. CPUID.1:ECX, bit 31, as Linux tells it."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return b" hypervisor" in file.read(8192)
    except OSError:
        return False
