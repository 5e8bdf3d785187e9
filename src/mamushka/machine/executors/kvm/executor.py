"""A machine as the kernel knows it.

The interrupt controller is split: local APICs in the kernel, the I/O APIC with us (interrupt.py), no PIC and no PIT.
A line is an eventfd that the kernel turns into the message that its I/O APIC entry means. Making a machine costs a
millisecond this way; with all of the controllers in the kernel, ten.
"""

from __future__ import annotations

import errno
import os
import threading

from mamushka.errors import Unsupported
from mamushka.linux import kvm, kvm_x86
from mamushka.linux.abi import over, pack, sizeof
from mamushka.linux.kvm_stats import Statistics
from mamushka.machine.bus import Place
from mamushka.machine.executors.kvm import x86
from mamushka.machine.executors.kvm.vcpu import KvmVcpu, prepare_to_kick
from mamushka.machine.interrupt import BASE, LENGTH, PINS, IoApic, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.machine.memory import Region

DEVICE = "/dev/kvm"
# Three pages that only Intel's processors want, where no machine of ours has anything else.
_TSS = 0xFFFBD000
# A node may have been made before its module; open(2).
_NO_KVM = (errno.ENOENT, errno.ENXIO, errno.ENODEV)


class KvmLine:
    """An interrupt line: writing to its eventfd raises it, whoever does."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fire(self) -> None:
        """Raise it once."""
        os.eventfd_write(self.fd, 1)


class KvmExecutor:
    """A machine of KVM's. ``interrupts=False`` makes one without controllers: HLT is an exit then."""

    name = "kvm"

    def __init__(self, *, interrupts: bool = True, device: str = DEVICE) -> None:
        prepare_to_kick()
        self.kvm = open_device(device)
        self.vm = -1
        try:
            self.vm = kvm.KVM_CREATE_VM(self.kvm, 0)
            self._interrupts = interrupts
            self._slots: dict[int, Region] = {}
            self._lines: dict[int, KvmLine] = {}
            self._vcpus: list[KvmVcpu] = []
            self._statistics: list[Statistics] = []  # of the machine, then of each virtual CPU
            self._doorbells = 0
            self._lock = threading.Lock()  # guards the routes
            self._routes: dict[int, Message] = {}
            self.cpuid = x86.supported(self.kvm)
            self.ioapic = IoApic(self._route)
        except BaseException:
            self.close()
            raise

    @property
    def places(self) -> tuple[Place, ...]:
        """What it adds to the machine's memory bus."""
        return (Place(BASE, LENGTH, self.ioapic, "ioapic"),) if self._interrupts else ()

    # Memory

    def map(self, region: Region) -> None:
        """Give it a slot. A read-only region's is read-only: a write there is an exit."""
        slot = next(number for number in range(len(self._slots) + 1) if number not in self._slots)
        self._slots[slot] = region
        self._set(slot, region, region.length)

    def unmap(self, region: Region) -> None:
        """Delete its slot."""
        slot = next(number for number, item in self._slots.items() if item is region)
        self._set(slot, region, 0)
        del self._slots[slot]

    def _set(self, slot: int, region: Region, length: int) -> None:
        kvm.KVM_SET_USER_MEMORY_REGION(
            self.vm,
            kvm.kvm_userspace_memory_region(
                slot=slot,
                flags=0 if region.writable else kvm.KVM_MEM_READONLY,
                guest_phys_addr=region.start,
                memory_size=length,
                userspace_addr=region.hva,
            ),
        )

    # Processors

    def vcpu(self, index: int) -> KvmVcpu:
        """Make a virtual CPU. All memory that is there at the beginning is best mapped before: it is quicker."""
        if self._interrupts and not self._vcpus:
            self._split()
        vcpu = KvmVcpu(self.kvm, self.vm, index, self.cpuid, interrupts=self._interrupts)
        self._vcpus.append(vcpu)
        return vcpu

    def _split(self) -> None:
        capability = kvm.kvm_enable_cap(cap=kvm.KVM_CAP_SPLIT_IRQCHIP, args=PINS.to_bytes(8, "little"))
        kvm.KVM_ENABLE_CAP(self.vm, capability)
        kvm_x86.KVM_SET_TSS_ADDR(self.vm, _TSS)

    # Interrupts and doorbells

    def line(self, gsi: int) -> KvmLine:
        """An edge-triggered line; the same one for the same number. After the first virtual CPU."""
        if gsi not in self._lines:
            line = self._lines[gsi] = KvmLine()
            self.ioapic.connect(gsi)
            kvm.KVM_IRQFD(self.vm, kvm.kvm_irqfd(fd=line.fd, gsi=gsi))
        return self._lines[gsi]

    def _route(self, changes: Mapping[int, Message | None]) -> None:
        with self._lock:
            after = {**self._routes, **changes}
            routes = {gsi: message for gsi, message in after.items() if message is not None}
            if routes == self._routes:
                return
            self._routes = routes
            entries = [
                kvm.kvm_irq_routing_entry_msi(
                    gsi=gsi,
                    type=kvm.KVM_IRQ_ROUTING_MSI,
                    address_lo=message.address & 0xFFFFFFFF,
                    address_hi=message.address >> 32,
                    data=message.data,
                )
                for gsi, message in self._routes.items()
            ]
            head = pack(kvm.kvm_irq_routing(nr=len(entries)))
            table = bytearray(head + b"".join(pack(entry) for entry in entries))
            kvm.KVM_SET_GSI_ROUTING(self.vm, over(kvm.kvm_irq_routing, table))

    def doorbell(self, address: int, size: int, value: int | None, fd: int, *, port: bool = False) -> bool:
        """Signal an eventfd at a write, without an exit."""
        flags = kvm.KVM_IOEVENTFD_FLAG_PIO if port else 0
        flags |= 0 if value is None else kvm.KVM_IOEVENTFD_FLAG_DATAMATCH
        bell = kvm.kvm_ioeventfd(datamatch=value or 0, addr=address, len=size, fd=fd, flags=flags)
        kvm.KVM_IOEVENTFD(self.vm, bell)
        return True

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """The I/O APIC and the clock."""
        clock = kvm.kvm_clock_data()
        kvm.KVM_GET_CLOCK(self.vm, clock)
        return {"ioapic": self.ioapic.save(), "clock": pack(clock)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take it, after the virtual CPUs are made. The clock goes on where it was."""
        self.ioapic.restore(state["ioapic"])
        clock = over(kvm.kvm_clock_data, bytearray(state["clock"]))
        kvm.KVM_SET_CLOCK(self.vm, kvm.kvm_clock_data(clock=clock.clock))

    def counts(self) -> dict[str, int]:
        """The kernel's own counters, of the machine and all virtual CPUs together; empty where it has none.

        Ask once before the machine starts: a virtual CPU hands its counters over only while it does not run, and one
        that sleeps in the kernel runs. Once they are open nobody waits.
        """
        try:
            for fd in (self.vm, *(vcpu.fd for vcpu in self._vcpus))[len(self._statistics) :]:
                self._statistics.append(Statistics(fd))
        except OSError:  # older than Linux 5.14
            return {}
        found: dict[str, int] = {}
        for statistics in self._statistics:
            for name, count in statistics.read().items():
                found[name] = found.get(name, 0) + count
        return found

    def close(self) -> None:
        """End the machine: virtual CPUs, lines, memory slots."""
        for item in (*getattr(self, "_statistics", []), *getattr(self, "_vcpus", [])):
            item.close()
        for line in getattr(self, "_lines", {}).values():
            os.close(line.fd)
        for fd in (self.vm, self.kvm):
            if fd >= 0:
                os.close(fd)
        self._statistics, self._vcpus, self._lines, self.vm, self.kvm = [], [], {}, -1, -1


def open_device(device: str = DEVICE) -> int:
    """A descriptor of KVM itself, yours to close. Unsupported where this host or user has none."""
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise Unsupported(
            f"{device} may not be opened by uid {os.getuid()}",
            hint="add the user to the group that owns it, mostly kvm; or choose --runtime container",
        ) from error
    except OSError as error:
        if error.errno not in _NO_KVM:
            raise
        raise Unsupported(
            f"{device} is not there: this kernel has no KVM, or its module is not loaded",
            hint="modprobe kvm_intel || modprobe kvm_amd; on a rented machine nested virtualization must be switched "
            "on; or choose --runtime container",
        ) from error


assert sizeof(kvm.kvm_irq_routing_entry_msi) == 48  # include/uapi/linux/kvm.h: 16 and a union of 32
