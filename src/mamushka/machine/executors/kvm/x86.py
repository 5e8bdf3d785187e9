"""What an x86 processor is told it is, how it begins, and all that makes up its state."""

from __future__ import annotations

from struct import Struct, unpack_from

from mamushka import trace
from mamushka.linux import kvm, kvm_x86
from mamushka.linux.abi import over, pack, sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from mamushka.machine.vcpu import Entry

_HEAD = sizeof(kvm_x86.kvm_cpuid2)
_LEAF = Struct("<7I12x")  # kvm_cpuid_entry2
_U32 = Struct("<I")
_MSR = Struct("<IIQ")  # kvm_msr_entry
_LEAVES_MAX = 256  # KVM_MAX_CPUID_ENTRIES
_MSRS_MAX = 1024  # a kernel of today has some 150 to 400

REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
)  # fmt: skip

# Control register and EFER bits. Intel SDM volume 3, 2.5 and 2.2.1.
_PE, _ET, _NE, _WP, _PG = 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
_PAE = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10

# CPUID.1:ECX and EDX. Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
_VMX, _PDCM, _X2APIC, _TSC_DEADLINE, _HYPERVISOR = 1 << 5, 1 << 15, 1 << 21, 1 << 24, 1 << 31
_SVM = 1 << 2  # of CPUID.80000001:ECX
_HTT = 1 << 28

_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = 0x174, 0x175, 0x176
_STAR, _LSTAR, _CSTAR, _SYSCALL_MASK, _KERNEL_GS_BASE = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102
_TSC, _MISC_ENABLE, _MTRR_DEF_TYPE, _TSC_DEADLINE_MSR = 0x10, 0x1A0, 0x2FF, 0x6E0
_AT_RESET = {
    _SYSENTER_CS: 0, _SYSENTER_ESP: 0, _SYSENTER_EIP: 0, _STAR: 0, _CSTAR: 0, _KERNEL_GS_BASE: 0, _SYSCALL_MASK: 0,
    _LSTAR: 0, _TSC: 0, _MISC_ENABLE: 1, _MTRR_DEF_TYPE: 0x806,
}  # fmt: skip


# What it is


def supported(kvm_fd: int) -> bytes:
    """What CPUID can answer here, as kvm_cpuid_entry2 after kvm_cpuid_entry2."""
    table = bytearray(_HEAD + _LEAVES_MAX * _LEAF.size)
    head = over(kvm_x86.kvm_cpuid2, table)
    head.nent = _LEAVES_MAX
    kvm_x86.KVM_GET_SUPPORTED_CPUID(kvm_fd, head)
    return bytes(table[_HEAD : _HEAD + head.nent * _LEAF.size])


def identify(fd: int, cpuid: bytes, index: int, *, interrupts: bool) -> None:
    """Tell a virtual CPU what it is, and set its registers as at reset where KVM does not by itself."""
    body = told(cpuid, index, interrupts=interrupts)
    table = bytearray(pack(kvm_x86.kvm_cpuid2(nent=len(body) // _LEAF.size)) + body)
    kvm_x86.KVM_SET_CPUID2(fd, over(kvm_x86.kvm_cpuid2, table))
    kvm_x86.KVM_SET_FPU(fd, kvm_x86.kvm_fpu(fcw=0x37F, mxcsr=0x1F80))
    write_msrs(fd, _AT_RESET)
    if interrupts:
        _wire(fd)


def told(cpuid: bytes, index: int, *, interrupts: bool) -> bytes:
    """What a virtual CPU answers, of what ``supported`` gave; entries in the same form."""
    leaves = [_normal(list(leaf), index, interrupts) for leaf in _LEAF.iter_unpack(cpuid)]
    return b"".join(_LEAF.pack(*leaf) for leaf in leaves if leaf)


def _normal(leaf: list[int], index: int, interrupts: bool) -> list[int]:
    """What the host says of itself becomes what the guest is to know; empty for a leaf that it is not to have.

    Each virtual CPU is a package of one core with one thread: the guest's scheduler sees equals. In a machine
    there are no machines: the part of KVM that runs them is large, and what they are is not in a state that is saved.
    """
    function, subleaf, _, eax, ebx, ecx, edx = leaf
    if function == 1:
        ebx = ebx & 0xFFFF | 1 << 16 | (index & 0xFF) << 24
        ecx = ecx & ~(_PDCM | _VMX) | _HYPERVISOR
        ecx = ecx | _TSC_DEADLINE | _X2APIC if interrupts else ecx & ~(_TSC_DEADLINE | _X2APIC)
        edx &= ~_HTT
    elif function == 4:
        eax &= 0x3FFF  # caches belong to one core
    elif function == 7 and subleaf == 0:
        edx &= ~(1 << 29)  # ARCH_CAPABILITIES, which not every KVM that offers it lets us write
    elif function in (0xA, 0x80000022, 0x8000000A):
        eax = ebx = ecx = edx = 0  # performance counters; what SVM can do
    elif function in (0xB, 0x1F):
        eax, edx = 0, index
        ebx, ecx = (1, subleaf | subleaf + 1 << 8) if subleaf < 2 else (0, subleaf)
    elif function == 0x80000001:
        ecx &= ~(1 << 1 | 1 << 22 | _SVM)  # CMP_LEGACY, TOPOEXT
    elif function == 0x80000008:
        ecx = 0  # one core
    elif function in (0x8000001D, 0x8000001E):
        return []
    return [function, subleaf, leaf[2], eax, ebx, ecx, edx]


def _wire(fd: int) -> None:
    """LINT0 takes what an 8259 would send, LINT1 NMIs. Intel MultiProcessor Specification 1.4, 3.6.2.2."""
    registers = bytearray(sizeof(kvm_x86.kvm_lapic_state))
    state = over(kvm_x86.kvm_lapic_state, registers)
    kvm_x86.KVM_GET_LAPIC(fd, state)
    for offset, mode in ((0x350, 0x700), (0x360, 0x400)):
        before: int = _U32.unpack_from(registers, offset)[0]
        _U32.pack_into(registers, offset, before & ~0x700 | mode)
    kvm_x86.KVM_SET_LAPIC(fd, state)


# How it begins


def enter(fd: int, entry: Entry) -> None:
    """Put a virtual CPU into one of the modes that ``Entry`` names, at its first instruction."""
    sregs = over(kvm_x86.kvm_sregs, bytearray(sizeof(kvm_x86.kvm_sregs)))
    kvm_x86.KVM_GET_SREGS(fd, sregs)
    if entry.mode == "long":
        code, sregs.cr0, sregs.cr4 = {"type": 11, "l": 1, "db": 0, "g": 1}, _PE | _ET | _NE | _WP | _PG, _PAE
        sregs.cr3, sregs.efer = entry.cr3, _LME | _LMA
    elif entry.mode == "protected":
        code, sregs.cr0, sregs.cr4 = {"type": 11, "l": 0, "db": 1, "g": 1}, _PE | _ET | _NE, 0
    elif entry.mode == "real":
        code, sregs.cr0, sregs.cr4 = {}, _ET, 0
    else:
        raise ValueError(entry.mode)
    if entry.mode == "real":
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
    else:
        _flat(sregs, entry, code)
    kvm_x86.KVM_SET_SREGS(fd, sregs)
    regs = kvm_x86.kvm_regs(rflags=2)
    for name, number in entry.registers.items():
        setattr(regs, name, number)
    kvm_x86.KVM_SET_REGS(fd, regs)


def _flat(sregs: kvm_x86.kvm_sregs, entry: Entry, code: Mapping[str, int]) -> None:
    """Segments that cover everything, by the selectors that Linux and multiboot kernels expect: 0x10, 0x18, 0x20."""
    wide = {"base": 0, "limit": 0xFFFFFFFF, "present": 1, "dpl": 0, "s": 1}
    sregs.cs = kvm_x86.kvm_segment(selector=0x10, **wide, **code)
    data = kvm_x86.kvm_segment(selector=0x18, type=3, db=1, g=1, **wide)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = kvm_x86.kvm_segment(selector=0x20, type=11, base=0, limit=0x67, present=1)
    if entry.table:
        sregs.gdt = kvm_x86.kvm_dtable(base=entry.gdt, limit=len(entry.table) - 1)
        sregs.idt = kvm_x86.kvm_dtable(base=0, limit=0)


# Registers


def registers(fd: int) -> dict[str, int]:
    """The general registers by name."""
    regs = kvm_x86.kvm_regs()
    kvm_x86.KVM_GET_REGS(fd, regs)
    return {name: getattr(regs, name) for name in REGISTERS}


def set_registers(fd: int, changes: Mapping[str, int]) -> None:
    """Change some, keep the others."""
    regs = kvm_x86.kvm_regs()
    kvm_x86.KVM_GET_REGS(fd, regs)
    for name, number in changes.items():
        setattr(regs, name, number)
    kvm_x86.KVM_SET_REGS(fd, regs)


def system_registers(fd: int) -> dict[str, int]:
    """Selectors, bases, control registers."""
    sregs = over(kvm_x86.kvm_sregs, bytearray(sizeof(kvm_x86.kvm_sregs)))
    kvm_x86.KVM_GET_SREGS(fd, sregs)
    found = {name: getattr(sregs, name).selector for name in ("cs", "ss", "ds", "es", "fs", "gs")}
    found |= {"fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
    found |= {"k_gs_base": read_msrs(fd, (_KERNEL_GS_BASE,)).get(_KERNEL_GS_BASE, 0)}
    return found | {name: getattr(sregs, name) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")}


def write_msrs(fd: int, values: Mapping[int, int]) -> int:
    """Write what KVM takes of them, in order; it stops at one that it does not, which is passed over and traced.

    How many were written.
    """
    rest = list(values.items())
    written = 0
    while rest:
        table = _msrs(rest)
        count = kvm_x86.KVM_SET_MSRS(fd, over(kvm_x86.kvm_msrs, table))
        written += count
        for index, number in rest[count : count + 1]:
            trace.event("kvm.msr_refused", index=index, value=number)
        rest = rest[count + 1 :]
    return written


def read_msrs(fd: int, indices: Iterable[int]) -> dict[int, int]:
    """Those that can be read."""
    rest = [(index, 0) for index in indices]
    found: dict[int, int] = {}
    while rest:
        table = _msrs(rest)
        count = kvm_x86.KVM_GET_MSRS(fd, over(kvm_x86.kvm_msrs, table))
        for position in range(count):
            index, _, number = _MSR.unpack_from(table, _HEAD + position * _MSR.size)
            found[index] = number
        rest = rest[count + 1 :]
    return found


def _msrs(pairs: Sequence[tuple[int, int]]) -> bytearray:
    body = b"".join(_MSR.pack(index, 0, number) for index, number in pairs)
    return bytearray(pack(kvm_x86.kvm_msrs(nmsrs=len(pairs))) + body)


def _to_be_saved(kvm_fd: int) -> tuple[int, ...]:
    """Which MSRs make up a state here. KVM tells the count first, by refusing."""
    table = bytearray(4 + 4 * _MSRS_MAX)
    head = over(kvm_x86.kvm_msr_list, table)
    head.nmsrs = _MSRS_MAX
    kvm_x86.KVM_GET_MSR_INDEX_LIST(kvm_fd, head)
    found: tuple[int, ...] = unpack_from(f"<{head.nmsrs}I", table, 4)
    return found


# All of its state. The order is the kernel's: what a part depends on comes before it.

_PARTS: tuple[tuple[str, Any, Any, Any], ...] = (
    ("mp_state", kvm.kvm_mp_state, kvm.KVM_GET_MP_STATE, kvm.KVM_SET_MP_STATE),
    ("regs", kvm_x86.kvm_regs, kvm_x86.KVM_GET_REGS, kvm_x86.KVM_SET_REGS),
    ("sregs", kvm_x86.kvm_sregs, kvm_x86.KVM_GET_SREGS, kvm_x86.KVM_SET_SREGS),
    ("xcrs", kvm_x86.kvm_xcrs, kvm_x86.KVM_GET_XCRS, kvm_x86.KVM_SET_XCRS),
    ("debugregs", kvm_x86.kvm_debugregs, kvm_x86.KVM_GET_DEBUGREGS, kvm_x86.KVM_SET_DEBUGREGS),
    ("lapic", kvm_x86.kvm_lapic_state, kvm_x86.KVM_GET_LAPIC, kvm_x86.KVM_SET_LAPIC),
)


def save(kvm_fd: int, vm: int, fd: int, *, interrupts: bool) -> dict[str, bytes]:
    """Everything that makes up a paused virtual CPU, in the kernel's own layouts."""
    state: dict[str, bytes] = {}
    for name, kind, get, _ in _PARTS:
        if name == "lapic" and not interrupts:
            continue
        item = kind()
        try:
            get(fd, item)
        except OSError:
            if name != "xcrs":  # a processor without XSAVE
                raise
            continue
        state[name] = pack(item)
    state["xsave"] = _save_xsave(vm, fd)
    state["msrs"] = bytes(_msrs(list(read_msrs(fd, _to_be_saved(kvm_fd)).items()))[_HEAD:])
    events = kvm_x86.kvm_vcpu_events()
    kvm_x86.KVM_GET_VCPU_EVENTS(fd, events)
    state["events"] = pack(events)
    return state


def _save_xsave(vm: int, fd: int) -> bytes:
    """Four KiB or more; more only where the processor has wide extensions that were switched on."""
    size = kvm.KVM_CHECK_EXTENSION(vm, kvm.KVM_CAP_XSAVE2)
    buffer = bytearray(max(size, sizeof(kvm_x86.kvm_xsave)))
    get = kvm_x86.KVM_GET_XSAVE2 if size > sizeof(kvm_x86.kvm_xsave) else kvm_x86.KVM_GET_XSAVE
    get(fd, over(kvm_x86.kvm_xsave, buffer))
    return bytes(buffer)


def restore(fd: int, state: Mapping[str, bytes]) -> None:
    """Take what ``save`` gave. Unsupported where this host's KVM does not have all of it."""
    for name, kind, _, set_part in _PARTS:
        if name in state:
            set_part(fd, over(kind, bytearray(state[name])))
    kvm_x86.KVM_SET_XSAVE(fd, over(kvm_x86.kvm_xsave, bytearray(state["xsave"])))
    msrs = {index: number for index, _, number in _MSR.iter_unpack(state["msrs"])}
    deadline = msrs.pop(_TSC_DEADLINE_MSR, None)
    write_msrs(fd, msrs)
    if deadline is not None:  # it is compared with the time stamp counter, which is among the others
        write_msrs(fd, {_TSC_DEADLINE_MSR: deadline})
    kvm_x86.KVM_SET_VCPU_EVENTS(fd, over(kvm_x86.kvm_vcpu_events, bytearray(state["events"])))
