"""Where things lie in an x86 guest's physical memory before its kernel takes over, and on its buses.

    0x0000500  descriptor table (GDT)             0x0020000  command line, 64 KiB at most
    0x0006000  PVH or multiboot start information 0x0009fc00 end of usable low memory
    0x0007000  zero page (struct boot_params)     0x00e0000  ACPI: RSDP first, then the tables, to 1 MiB
    0x0008ff0  stack, downwards                   0x0100000  kernel, initramfs and everything else
    0x0009000  page tables: 4 GiB, identity       0xc0000000 end of low RAM; it goes on at 4 GiB

    0xd0000000 virtio-mmio, 4 KiB each, GSI 5 and up   0xfec00000 IOAPIC   0xfee00000 local APIC   256 GiB  pmem

What the kernel must not write over is what its memory map leaves out; the rest below 1 MiB is dead once it runs.
"""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Below 1 MiB.
GDT = 0x500
START = 0x6000  # hvm_start_info or multiboot information, and what hangs from it, to the zero page
ZERO_PAGE = 0x7000  # a PVH memory map lies here too: no kernel gets both
STACK = 0x8FF0
PAGE_TABLES = 0x9000  # one PML4, one PDPT, four page directories
COMMAND_LINE, COMMAND_LINE_MAX = 0x20000, 0x10000
LOW_END = 0x9FC00
ACPI, ACPI_END = 0xE0000, 0x100000
HIGH = 0x100000

# RAM, and the hole in it.
HOLE, HOLE_END = 3 * GIB, 4 * GIB
VIRTIO_MMIO, VIRTIO_MMIO_SIZE, VIRTIO_GSI = 0xD000_0000, 0x1000, 5
IOAPIC = 0xFEC0_0000
LAPIC = 0xFEE0_0000
PMEM, PMEM_ALIGN = 256 * GIB, 16 * MIB

# Ports.
SERIAL, SERIAL_SIZE, SERIAL_GSI = 0x3F8, 8, 4
FW_CFG = 0x510
# ACPI's sleep control and status registers and the reset register, a byte each. A write to the first with SLP_EN set
# (bit 5) and SLP_TYP (bits 2 to 4) of S5 powers off; RESET_VALUE to the last begins anew.
SLEEP_CONTROL, SLEEP_STATUS, RESET = 0x600, 0x601, 0x602
S5, RESET_VALUE = 5, 1
DEBUG_EXIT = 0xF4


def ram(size: int) -> tuple[tuple[int, int], ...]:
    """Start and length of each stretch of RAM that ``size`` bytes make, around the hole."""
    if size <= HOLE:
        return ((0, size),)
    return (0, HOLE), (HOLE_END, size - HOLE)
