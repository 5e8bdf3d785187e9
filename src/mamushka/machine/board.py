"""What a machine is plugged together from: RAM, pmem, a serial port, the power switch, virtio devices in order.

The place of a device follows from its order alone, and so do its interrupt and the names that Linux gives (vda, eth0):
a machine that is plugged together again in the same way, out of a saved state, finds everything where it was.

    board = Board(KvmExecutor(), ram(256 << 20), vcpus=2)
    board.pmem(fd, length)             a file as memory, shared with everyone who maps it
    board.add("rng", Rng())            a virtio device
    board.boot(kernel, …)              or: state.reinstate(board.machine, board.parts, saved)

A device may be plugged in *late*: until ``reveal`` its place looks empty, so a kernel that comes up passes it by and
remembers nothing of it. Whoever wants it has the guest look at that place again (``layers.bind``). So machines that
come up alike may have different devices in the end, which is what a warm start needs (warm.py).
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid
from mamushka.machine.boot import acpi, layout, load
from mamushka.machine.boot.memory_map import Stretch
from mamushka.machine.devices import pci
from mamushka.machine.devices.power import LENGTH as POWER_LENGTH
from mamushka.machine.devices.power import Power
from mamushka.machine.devices.serial import LENGTH as SERIAL_LENGTH
from mamushka.machine.devices.serial import Serial
from mamushka.machine.devices.virtio.mmio import Transport
from mamushka.machine.machine import Machine
from mamushka.machine.memory import FILE, PMEM, Memory, Region, ram_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mamushka.machine.devices.virtio.device import Device
    from mamushka.machine.state import Stateful
    from mamushka.machine.vcpu import Entry, Executor

# The I/O APIC's 24 pins, less those below virtio's first.
DEVICES_MAX = 24 - layout.VIRTIO_GSI
# Places that a kernel is told of for cards that are plugged in while it runs (cards.py).
SPARE = 4


def ram(size: int) -> Memory:
    """Fresh RAM of ``size`` bytes, a multiple of the page's, around the hole below 4 GiB: one file, shared."""
    fd = ram_file(size)
    try:
        regions, offset = [], 0
        for start, length in layout.ram(size):
            regions.append(Region(start, length, fd=os.dup(fd), offset=offset, shared=True, name="ram"))
            offset += length
        return Memory(tuple(regions))
    finally:
        os.close(fd)


class Board:
    """A machine that is being plugged together. Owns the machine and all that is plugged in; ``close`` ends both."""

    def __init__(self, executor: Executor, memory: Memory, *, vcpus: int = 1) -> None:
        self.machine = Machine(executor, memory, vcpus=vcpus)
        self.transports: dict[str, Transport] = {}
        self._late: set[str] = set()
        self.serial: Serial | None = None
        self._pmem = layout.PMEM
        self.machine.ports.attach(layout.SLEEP_CONTROL, POWER_LENGTH, Power(self.machine.power), "power")
        self.machine.ports.attach(pci.PORT, pci.LENGTH, pci.Configuration(), "pci")

    def console(self, sink: int | Callable[[bytes], object], source: int = -1) -> Serial:
        """The serial port, COM1. See ``Serial`` for what it takes."""
        line = self.machine.executor.line(layout.SERIAL_GSI)
        self.serial = Serial(line, self.machine.loop, sink, source)
        self.machine.ports.attach(layout.SERIAL, SERIAL_LENGTH, self.serial, "serial")
        return self.serial

    def pmem(self, fd: int, length: int, *, name: str = "pmem") -> Region:
        """A file that the guest sees as memory which it cannot change: /dev/pmem0 and on, in the order of these calls.

        ``length`` in bytes is a multiple of a page's, and what the file has at least. The descriptor becomes ours.
        """
        region = Region(self._pmem, length, fd=fd, writable=False, kind=PMEM, name=name)
        self.machine.memory.add(region)
        self.machine.executor.map(region)
        # A gap, or Linux would take neighbours for one.
        self._pmem += -(-length // layout.PMEM_ALIGN) * layout.PMEM_ALIGN + layout.PMEM_ALIGN
        return region

    def window(self, length: int, files: Sequence[tuple[int, int]], *, name: str = "file") -> Region:
        """Files, (descriptor, length) each, one behind the other in memory that the guest cannot change; the first.

        The guest is told of the window by a device alone (``Pmem``). What the files leave of it is zeros. Lengths are
        multiples of 2 MiB; descriptors become ours.
        """
        start, end = self._pmem, self._pmem + length
        regions = []
        for number, (fd, size) in enumerate(files):
            regions.append(Region(start, size, fd=fd, writable=False, kind=FILE, name=f"{name} {number}"))
            start += size
        if start < end:
            regions.append(Region(start, end - start, writable=False, kind=FILE, name=f"no {name}"))
        for region in regions:
            self.machine.memory.add(region)
            self.machine.executor.map(region)
        self._pmem = end + -end % layout.PMEM_ALIGN + layout.PMEM_ALIGN
        return regions[0]

    def add(self, name: str, device: Device, *, late: bool = False) -> Transport:
        """Plug a virtio device in, which becomes ours. Invalid where no place is left."""
        number = len(self.transports)
        if number >= DEVICES_MAX:
            device.close()
            raise Invalid(f"a machine of more than {DEVICES_MAX} virtio devices: {name} has no interrupt left")
        machine = self.machine
        line = machine.executor.line(layout.VIRTIO_GSI + number)
        transport = Transport(device, machine.memory, line, machine.loop)
        self.transports[name] = transport
        if late:
            self._late.add(name)
            transport.hide()
        machine.resumed.append(transport.resume)
        transport.attach(layout.VIRTIO_MMIO + number * layout.VIRTIO_MMIO_SIZE, machine.bus, machine.executor)
        return transport

    @property
    def early(self) -> dict[str, Stateful]:
        """``parts`` without what is late: all that a guest has seen before ``reveal``."""
        return {name: part for name, part in self.parts.items() if name not in self._late}

    @property
    def early_transports(self) -> int:
        """How many virtio devices are not late."""
        return len(self.transports) - len(self._late)

    def reveal(self) -> None:
        """Have what is late be there."""
        for name in self._late:
            self.transports[name].reveal()

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that is plugged in and has a state, by name: for ``state.capture`` and ``state.reinstate``."""
        serial = {} if self.serial is None else {"serial": self.serial}
        return {**self.transports, **serial}

    def boot(
        self,
        kernel: str | bytes | memoryview,
        *,
        command_line: bytes = b"",
        initramfs: Sequence[bytes | memoryview] = (),
        extra: Iterable[Stretch] = (),
        places: int = 0,
    ) -> Entry:
        """Put a kernel and all that it must be told into memory; where the first virtual CPU begins.

        It is told of ``places`` for virtio devices, where that is more than there are and not more than there can be.
        """
        count = max(min(places, DEVICES_MAX), len(self.transports))
        for number in range(len(self.transports), count):
            self.machine.executor.line(layout.VIRTIO_GSI + number)  # the pin is there for whoever looks
        addresses = tuple(
            acpi.Mmio(
                layout.VIRTIO_MMIO + number * layout.VIRTIO_MMIO_SIZE,
                layout.VIRTIO_MMIO_SIZE,
                layout.VIRTIO_GSI + number,
            )
            for number in range(count)
        )
        board = acpi.Board(
            processors=len(self.machine.vcpus),
            devices=addresses,
            serial=acpi.Serial() if self.serial is not None else None,
        )
        rsdp = acpi.install(self.machine.memory, board)
        return load(self.machine.memory, kernel, command_line=command_line, initramfs=initramfs, rsdp=rsdp, extra=extra)

    def close(self) -> None:
        """End the machine and give everything back."""
        self.machine.stop()
        for transport in self.transports.values():
            transport.close()
        if self.serial is not None:
            self.serial.close()
        self.machine.close()
