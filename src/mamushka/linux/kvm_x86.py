"""What x86 adds to the kernel's virtual machines: registers, CPUID, MSRs, the local APIC.

Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from mamushka.linux.abi import IO, IOR, IOW, IOWR, Annotated, struct, u8, u16, u32, u64
from mamushka.linux.kvm import KVMIO

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
KVM_GUESTDBG_USE_SW_BP = 0x00010000
KVM_GUESTDBG_USE_HW_BP = 0x00020000
KVM_CLOCK_TSC_STABLE = 2
KVM_CLOCK_REALTIME = 4
KVM_CLOCK_HOST_TSC = 8

KVM_GUESTDBG_USE_SW_BP = 0x10000
KVM_GUESTDBG_USE_HW_BP = 0x20000
KVM_GUESTDBG_INJECT_BP = 0x80000
KVM_GUESTDBG_BLOCKIRQ = 0x100000


@struct
class kvm_regs:
    """The general registers."""

    rax: u64 = 0
    rbx: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    rsp: u64 = 0
    rbp: u64 = 0
    r8: u64 = 0
    r9: u64 = 0
    r10: u64 = 0
    r11: u64 = 0
    r12: u64 = 0
    r13: u64 = 0
    r14: u64 = 0
    r15: u64 = 0
    rip: u64 = 0
    rflags: u64 = 0


@struct
class kvm_segment:
    """A segment register with what the processor keeps of its descriptor."""

    base: u64 = 0
    limit: u32 = 0
    selector: u16 = 0
    type: u8 = 0
    present: u8 = 0
    dpl: u8 = 0
    db: u8 = 0
    s: u8 = 0
    l: u8 = 0  # noqa: E741  # the kernel's name
    g: u8 = 0
    avl: u8 = 0
    unusable: u8 = 0
    padding: u8 = 0


@struct
class kvm_dtable:
    """Where a descriptor table lies."""

    base: u64 = 0
    limit: u16 = 0
    padding: Annotated[bytes, 6] = b""


@struct
class kvm_sregs:
    """Segments, tables, control registers."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: u64 = 0
    cr2: u64 = 0
    cr3: u64 = 0
    cr4: u64 = 0
    cr8: u64 = 0
    efer: u64 = 0
    apic_base: u64 = 0
    interrupt_bitmap: Annotated[bytes, 32] = b""


@struct
class kvm_fpu:
    """The floating point and SSE registers."""

    fpr: Annotated[bytes, 128] = b""
    fcw: u16 = 0
    fsw: u16 = 0
    ftwx: u8 = 0
    pad1: u8 = 0
    last_opcode: u16 = 0
    last_ip: u64 = 0
    last_dp: u64 = 0
    xmm: Annotated[bytes, 256] = b""
    mxcsr: u32 = 0
    pad2: u32 = 0


@struct
class kvm_lapic_state:
    """The registers of a local APIC, a page's first KiB."""

    regs: Annotated[bytes, 1024] = b""


@struct
class kvm_msr_entry:
    """A model-specific register."""

    index: u32 = 0
    reserved: u32 = 0
    data: u64 = 0


@struct
class kvm_msrs:
    """The head of a list of them."""

    nmsrs: u32 = 0
    pad: u32 = 0


@struct
class kvm_msr_list:
    """The head of a list of their indices."""

    nmsrs: u32 = 0


@struct
class kvm_cpuid_entry2:
    """What CPUID answers to a leaf, and where it says so to an index of it."""

    function: u32 = 0
    index: u32 = 0
    flags: u32 = 0
    eax: u32 = 0
    ebx: u32 = 0
    ecx: u32 = 0
    edx: u32 = 0
    padding: Annotated[bytes, 12] = b""


@struct
class kvm_cpuid2:
    """The head of a list of them."""

    nent: u32 = 0
    padding: u32 = 0


@struct
class kvm_vcpu_events:
    """What is about to happen to a virtual CPU: exceptions, interrupts, NMIs; opaque to us."""

    raw: Annotated[bytes, 64] = b""


@struct
class kvm_debugregs:
    """The debug registers."""

    db: Annotated[bytes, 32] = b""
    dr6: u64 = 0
    dr7: u64 = 0
    flags: u64 = 0
    reserved: Annotated[bytes, 72] = b""


@struct
class kvm_xsave:
    """All extended state in the processor's own layout; larger where KVM_CAP_XSAVE2 says so."""

    region: Annotated[bytes, 4096] = b""


@struct
class kvm_xcrs:
    """The extended control registers."""

    nr_xcrs: u32 = 0
    flags: u32 = 0
    xcrs: Annotated[bytes, 256] = b""
    padding: Annotated[bytes, 128] = b""


@struct
class kvm_guest_debug:
    """What the guest is stopped for; the debug registers that do it."""

    control: u32 = 0
    pad: u32 = 0
    debugreg: Annotated[bytes, 64] = b""


@struct
class kvm_debug_exit_arch:
    """KVM_EXIT_DEBUG: which exception, where, and the debug registers that tell why."""

    exception: u32 = 0
    pad: u32 = 0
    pc: u64 = 0
    dr6: u64 = 0
    dr7: u64 = 0


@IOWR(KVMIO, 0x02)
def KVM_GET_MSR_INDEX_LIST(kvm: int, list: kvm_msr_list) -> None:
    """Which MSRs make up a virtual CPU's state here; E2BIG tells the count. 4.3."""


@IOWR(KVMIO, 0x05)
def KVM_GET_SUPPORTED_CPUID(kvm: int, cpuid: kvm_cpuid2) -> None:
    """What CPUID can answer here. 4.47."""


@IO(KVMIO, 0x47)
def KVM_SET_TSS_ADDR(vm: int, address: int) -> None:
    """Three pages that Intel's processors need below 4 GiB. 4.36."""


@IOR(KVMIO, 0x81)
def KVM_GET_REGS(vcpu: int, regs: kvm_regs) -> None:
    """4.11."""


@IOW(KVMIO, 0x82)
def KVM_SET_REGS(vcpu: int, regs: kvm_regs) -> None:
    """4.12."""


@IOR(KVMIO, 0x83)
def KVM_GET_SREGS(vcpu: int, sregs: kvm_sregs) -> None:
    """4.13."""


@IOW(KVMIO, 0x84)
def KVM_SET_SREGS(vcpu: int, sregs: kvm_sregs) -> None:
    """4.14."""


@IOWR(KVMIO, 0x88)
def KVM_GET_MSRS(vcpu: int, msrs: kvm_msrs) -> int:
    """How many of the list could be read, from its beginning. 4.18."""
    raise NotImplementedError


@IOW(KVMIO, 0x89)
def KVM_SET_MSRS(vcpu: int, msrs: kvm_msrs) -> int:
    """How many of the list could be written, from its beginning. 4.19."""
    raise NotImplementedError


@IOR(KVMIO, 0x8C)
def KVM_GET_FPU(vcpu: int, fpu: kvm_fpu) -> None:
    """4.22."""


@IOW(KVMIO, 0x8D)
def KVM_SET_FPU(vcpu: int, fpu: kvm_fpu) -> None:
    """4.23."""


@IOR(KVMIO, 0x8E)
def KVM_GET_LAPIC(vcpu: int, lapic: kvm_lapic_state) -> None:
    """4.57."""


@IOW(KVMIO, 0x8F)
def KVM_SET_LAPIC(vcpu: int, lapic: kvm_lapic_state) -> None:
    """4.58."""


@IOW(KVMIO, 0x90)
def KVM_SET_CPUID2(vcpu: int, cpuid: kvm_cpuid2) -> None:
    """What CPUID will answer. 4.20."""


@IOW(KVMIO, 0x9B)
def KVM_SET_GUEST_DEBUG(vcpu: int, debug: kvm_guest_debug) -> None:
    """Stop the guest for its debugger. 4.87."""


@IOR(KVMIO, 0x9F)
def KVM_GET_VCPU_EVENTS(vcpu: int, events: kvm_vcpu_events) -> None:
    """4.31."""


@IOW(KVMIO, 0xA0)
def KVM_SET_VCPU_EVENTS(vcpu: int, events: kvm_vcpu_events) -> None:
    """4.32."""


@IOR(KVMIO, 0xA1)
def KVM_GET_DEBUGREGS(vcpu: int, debugregs: kvm_debugregs) -> None:
    """4.33."""


@IOW(KVMIO, 0xA2)
def KVM_SET_DEBUGREGS(vcpu: int, debugregs: kvm_debugregs) -> None:
    """4.34."""


@IO(KVMIO, 0xA2)
def KVM_SET_TSC_KHZ(vcpu: int, khz: int) -> None:
    """How fast its time stamp counter runs. 4.55."""


@IO(KVMIO, 0xA3)
def KVM_GET_TSC_KHZ(vcpu: int, unused: int) -> int:
    """4.56."""
    raise NotImplementedError


@IOR(KVMIO, 0xA4)
def KVM_GET_XSAVE(vcpu: int, xsave: kvm_xsave) -> None:
    """4.42."""


@IOR(KVMIO, 0xCF)
def KVM_GET_XSAVE2(vcpu: int, xsave: kvm_xsave) -> None:
    """As many bytes as KVM_CAP_XSAVE2 says. 4.134."""


@IOW(KVMIO, 0xA5)
def KVM_SET_XSAVE(vcpu: int, xsave: kvm_xsave) -> None:
    """4.43."""


@IOR(KVMIO, 0xA6)
def KVM_GET_XCRS(vcpu: int, xcrs: kvm_xcrs) -> None:
    """4.44."""


@IOW(KVMIO, 0xA7)
def KVM_SET_XCRS(vcpu: int, xcrs: kvm_xcrs) -> None:
    """4.45."""


@IO(KVMIO, 0xAD)
def KVM_KVMCLOCK_CTRL(vcpu: int, unused: int) -> None:
    """Tell the guest's watchdog that it was paused. 4.71."""
