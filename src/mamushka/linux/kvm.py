"""The kernel's virtual machines, the part that is alike on all architectures. Documentation/virt/kvm/api.rst."""

from __future__ import annotations

from mamushka.linux.abi import IO, IOR, IOW, IOWR, Annotated, s32, struct, u8, u16, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

KVMIO = 0xAE
KVM_API_VERSION = 12

KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQFD = 32
KVM_CAP_IOEVENTFD = 36
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_READONLY_MEM = 81
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_X2APIC_API = 129
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_BINARY_STATS_FD = 203
KVM_CAP_XSAVE2 = 208

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3

KVM_MEM_LOG_DIRTY_PAGES = 1
KVM_MEM_READONLY = 2

KVM_IOEVENTFD_FLAG_DATAMATCH = 1
KVM_IOEVENTFD_FLAG_PIO = 2
KVM_IOEVENTFD_FLAG_DEASSIGN = 4
KVM_IRQFD_FLAG_DEASSIGN = 1
KVM_IRQ_ROUTING_MSI = 2

KVM_GUESTDBG_ENABLE = 1
KVM_GUESTDBG_SINGLESTEP = 2

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1


@struct
class kvm_run:
    """The head of what a virtual CPU and its owner share; what follows depends on ``exit_reason``."""

    request_interrupt_window: u8 = 0
    immediate_exit: u8 = 0
    padding1: Annotated[bytes, 6] = b""
    exit_reason: u32 = 0
    ready_for_interrupt_injection: u8 = 0
    if_flag: u8 = 0
    flags: u16 = 0
    cr8: u64 = 0
    apic_base: u64 = 0


RUN_HEAD = 32  # bytes before the arms of kvm_run's union


@struct
class kvm_run_io:
    """KVM_EXIT_IO: ``count`` times ``size`` bytes from or to a port, at ``data_offset`` from kvm_run's beginning."""

    direction: u8 = 0
    size: u8 = 0
    port: u16 = 0
    count: u32 = 0
    data_offset: u64 = 0


@struct
class kvm_run_mmio:
    """KVM_EXIT_MMIO: an access to an address without memory."""

    phys_addr: u64 = 0
    data: Annotated[bytes, 8] = b""
    len: u32 = 0
    is_write: u8 = 0


@struct
class kvm_run_internal:
    """KVM_EXIT_INTERNAL_ERROR: what KVM could not do."""

    suberror: u32 = 0
    ndata: u32 = 0
    data: Annotated[bytes, 128] = b""


@struct
class kvm_run_fail_entry:
    """KVM_EXIT_FAIL_ENTRY: the processor refused the guest's state."""

    hardware_entry_failure_reason: u64 = 0
    cpu: u32 = 0


@struct
class kvm_run_system_event:
    """KVM_EXIT_SYSTEM_EVENT: the guest asked for its end, where the architecture has calls for that."""

    type: u32 = 0
    ndata: u32 = 0


@struct
class kvm_userspace_memory_region:
    """One guest-physical memory slot; all in bytes, page aligned."""

    slot: u32 = 0
    flags: u32 = 0
    guest_phys_addr: u64 = 0
    memory_size: u64 = 0  # zero deletes the slot
    userspace_addr: u64 = 0


@struct
class kvm_irqfd:
    """An eventfd that raises an interrupt."""

    fd: u32 = 0
    gsi: u32 = 0
    flags: u32 = 0
    resamplefd: u32 = 0
    pad: Annotated[bytes, 16] = b""


@struct
class kvm_ioeventfd:
    """An eventfd that a write to an address signals."""

    datamatch: u64 = 0
    addr: u64 = 0
    len: u32 = 0  # 1, 2, 4 or 8
    fd: s32 = 0
    flags: u32 = 0
    pad: Annotated[bytes, 36] = b""


@struct
class kvm_irq_routing:
    """The head of a table that says what each interrupt number means; entries follow."""

    nr: u32 = 0
    flags: u32 = 0


@struct
class kvm_irq_routing_msi:
    """A message: a write of ``data`` to an address that the interrupt controllers listen to."""

    address_lo: u32 = 0
    address_hi: u32 = 0
    data: u32 = 0
    pad: u32 = 0


@struct
class kvm_irq_routing_entry_msi:
    """One entry of the table, with its arm for messages."""

    gsi: u32 = 0
    type: u32 = 0
    flags: u32 = 0
    pad: u32 = 0
    address_lo: u32 = 0
    address_hi: u32 = 0
    data: u32 = 0
    devid: u32 = 0
    rest: Annotated[bytes, 16] = b""


@struct
class kvm_enable_cap:
    """What to switch on, with its arguments."""

    cap: u32 = 0
    flags: u32 = 0
    args: Annotated[bytes, 32] = b""
    pad: Annotated[bytes, 64] = b""


@struct
class kvm_mp_state:
    """Whether a virtual CPU runs, waits for its first instruction, or for an interrupt."""

    mp_state: u32 = 0


@struct
class kvm_clock_data:
    """The paravirtual clock: nanoseconds, and what they belong to."""

    clock: u64 = 0
    flags: u32 = 0
    pad0: u32 = 0
    realtime: u64 = 0
    host_tsc: u64 = 0
    pad: Annotated[bytes, 16] = b""


@struct
class kvm_translation:
    """A guest-virtual address and the guest-physical one behind it."""

    linear_address: u64 = 0
    physical_address: u64 = 0
    valid: u8 = 0
    writeable: u8 = 0
    usermode: u8 = 0
    pad: Annotated[bytes, 5] = b""


def _again(call: Callable[P, R]) -> Callable[P, R]:
    """What gives up when a signal comes, whatever that is about, and has done nothing then: asked until it is done."""

    def until(*arguments: P.args, **named: P.kwargs) -> R:
        while True:
            try:
                return call(*arguments, **named)
            except InterruptedError:
                pass

    return until


@IO(KVMIO, 0x00)
def KVM_GET_API_VERSION(kvm: int, unused: int) -> int:
    """12 since 2007. 4.1."""
    raise NotImplementedError


@_again
@IO(KVMIO, 0x01)
def KVM_CREATE_VM(kvm: int, kind: int) -> int:
    """A machine without memory and virtual CPUs, as a descriptor. 4.2.

    EINTR, which the manual does not tell of, comes from mm_take_all_locks() when a signal is pending.
    """
    raise NotImplementedError


@IO(KVMIO, 0x03)
def KVM_CHECK_EXTENSION(fd: int, capability: int) -> int:
    """Zero where it is not there, else one or a number of its own; of a machine or of KVM. 4.4."""
    raise NotImplementedError


@IO(KVMIO, 0x04)
def KVM_GET_VCPU_MMAP_SIZE(kvm: int, unused: int) -> int:
    """Bytes to map of a virtual CPU's descriptor. 4.5."""
    raise NotImplementedError


@_again
@IO(KVMIO, 0x41)
def KVM_CREATE_VCPU(vm: int, id: int) -> int:
    """A virtual CPU, as a descriptor. 4.7."""
    raise NotImplementedError


@IOW(KVMIO, 0x46)
def KVM_SET_USER_MEMORY_REGION(vm: int, region: kvm_userspace_memory_region) -> None:
    """Create, move or delete a memory slot. 4.35."""


@IOW(KVMIO, 0x6A)
def KVM_SET_GSI_ROUTING(vm: int, table: kvm_irq_routing) -> None:
    """Replace the whole table. 4.52."""


@IOW(KVMIO, 0x76)
def KVM_IRQFD(vm: int, irqfd: kvm_irqfd) -> None:
    """Let an eventfd raise an interrupt. 4.75."""


@IOW(KVMIO, 0x79)
def KVM_IOEVENTFD(vm: int, ioeventfd: kvm_ioeventfd) -> None:
    """Let a write to an address signal an eventfd. 4.59."""


@IOW(KVMIO, 0xA3)
def KVM_ENABLE_CAP(fd: int, capability: kvm_enable_cap) -> None:
    """Switch something on. 4.37."""


@IO(KVMIO, 0x80)
def KVM_RUN(vcpu: int, unused: int) -> None:
    """Run until something is to be done outside; EINTR for a signal or ``immediate_exit``. 4.10."""


@IOR(KVMIO, 0x98)
def KVM_GET_MP_STATE(vcpu: int, state: kvm_mp_state) -> None:
    """4.38."""


@IOW(KVMIO, 0x99)
def KVM_SET_MP_STATE(vcpu: int, state: kvm_mp_state) -> None:
    """4.39."""


@IOW(KVMIO, 0x7B)
def KVM_SET_CLOCK(vm: int, clock: kvm_clock_data) -> None:
    """4.30."""


@IOR(KVMIO, 0x7C)
def KVM_GET_CLOCK(vm: int, clock: kvm_clock_data) -> None:
    """4.29."""


@IOWR(KVMIO, 0x85)
def KVM_TRANSLATE(vcpu: int, translation: kvm_translation) -> None:
    """Walk the guest's page tables as they are now. 4.15."""


@IO(KVMIO, 0xCE)
def KVM_GET_STATS_FD(fd: int, unused: int) -> int:
    """The counters of a machine or a virtual CPU, which describe themselves. 4.133."""
    raise NotImplementedError
