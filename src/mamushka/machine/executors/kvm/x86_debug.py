"""What a debugger asks of an x86 processor, and what it says when it has stopped. Intel SDM volume 3, 17.2.

Four addresses in DR0 to DR3, what they are for in DR7, what happened in DR6; KVM keeps the guest's own apart.
"""

from __future__ import annotations

from errno import EINVAL
from struct import pack

from mamushka.errors import Unsupported
from mamushka.linux import kvm, kvm_x86
from mamushka.linux.abi import over
from mamushka.machine.vcpu import ACCESS, BREAKPOINT, EXECUTE, POINT, STEP, WRITE, Debug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.vcpu import Point

POINTS_MAX = 4
_KINDS = {EXECUTE: 0, WRITE: 1, ACCESS: 3}
_LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
_DR7_FIXED = 0x600
_BREAKPOINT_VECTOR = 3


def debug(fd: int, active: bool, *, step: bool, points: tuple[Point, ...], inject: bool) -> None:
    """Tell KVM what to stop for. Unsupported for more points than there are, or another length."""
    if len(points) > POINTS_MAX or any(point.length not in _LENGTHS for point in points):
        raise Unsupported(f"the processor cannot look out for {len(points)} places, or not of this length")
    control = kvm.KVM_GUESTDBG_ENABLE | kvm_x86.KVM_GUESTDBG_USE_SW_BP if active else 0
    # Stepping through a kernel would otherwise lead into the timer's handler, again and again. Linux 5.16.
    control |= kvm.KVM_GUESTDBG_SINGLESTEP | kvm_x86.KVM_GUESTDBG_BLOCKIRQ if step else 0
    control |= kvm_x86.KVM_GUESTDBG_USE_HW_BP if points else 0
    control |= kvm_x86.KVM_GUESTDBG_INJECT_BP if inject else 0
    registers = [0] * 8
    registers[7] = _DR7_FIXED if points else 0
    for number, point in enumerate(points):
        registers[number] = point.address
        kind = _KINDS[point.kind]
        length = _LENGTHS[point.length if kind else 1]
        registers[7] |= 2 << 2 * number | kind << 16 + 4 * number | length << 18 + 4 * number
    for refused in (0, kvm_x86.KVM_GUESTDBG_BLOCKIRQ):
        try:
            given = pack("<II8Q", control & ~refused, 0, *registers)
            kvm_x86.KVM_SET_GUEST_DEBUG(fd, over(kvm_x86.kvm_guest_debug, bytearray(given)))
            return
        except OSError as error:
            if error.errno != EINVAL or refused or not step:
                raise Unsupported(f"this KVM cannot stop for a debugger: {error}") from error


def stopped(exit: kvm_x86.kvm_debug_exit_arch, points: int) -> Debug:
    """Why it stopped, with so many points asked for. DR7 is not always told, so DR6 must do."""
    if exit.exception == _BREAKPOINT_VECTOR:
        return Debug(exit.pc, BREAKPOINT)
    for number in range(points):
        if exit.dr6 >> number & 1:
            return Debug(exit.pc, POINT, number)
    return Debug(exit.pc, STEP)
