"""ACPI tables for a machine without legacy hardware: what stands where, and how to end it. ACPI 6.5, chapter 5.

    RSDP -> XSDT -> FADT -> DSDT     devices: virtio over MMIO, the serial port, a power button
                    MADT             interrupt controllers: one IOAPIC, a local APIC for each processor

The FADT says HW_REDUCED: no PM timer, no fixed power button, no SMI; sleep and reset are registers of one byte at
ports (``layout``), and no PIC, PIT, VGA, keyboard controller or CMOS clock is looked for. The DSDT's order is the
order in which Linux finds devices, so it names /dev/vda, eth0 … in the order given here.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid
from mamushka.machine.boot import aml, layout
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.memory import Memory

_OEM, _OEM_TABLE, _CREATOR = b"MAMUSH", b"MAMUSHKA", b"MMSH"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_RSDP_LENGTH = 36

# FADT flags, table 5.10.
_WBINVD, _POWER_BUTTON, _SLEEP_BUTTON, _RESET_REGISTER, _HW_REDUCED = 1, 1 << 4, 1 << 5, 1 << 10, 1 << 20
# IA-PC boot architecture flags, table 5.11: no VGA, no CMOS clock; that of the 8042 is clear.
_NO_VGA, _NO_CMOS_RTC = 1 << 2, 1 << 5
# Local APIC ids from here on need the structure of x2APIC; 255 is the broadcast.
_APIC_MAX = 255
# A virtio-mmio device's name has three hexadecimal digits; the hole below the IOAPIC would hold no more either.
_DEVICES_MAX = 1 << 12


@value
class Mmio:
    """A virtio-mmio device: its registers' address and length in bytes, and its interrupt's global number."""

    address: int
    length: int
    gsi: int


@value
class Serial:
    """A 16550 at eight ports."""

    port: int = layout.SERIAL
    gsi: int = layout.SERIAL_GSI


@value
class Board:
    """All that the tables tell. ``button`` is the interrupt that means: power off, please; zero for no button."""

    processors: int = 1
    devices: tuple[Mmio, ...] = ()
    serial: Serial | None = Serial()
    button: int = 0


def install(memory: Memory, board: Board, base: int = layout.ACPI) -> int:
    """Write the tables into memory; the address of the RSDP, for whoever boots a kernel."""
    blob = build(board, base)
    if len(blob) > layout.ACPI_END - layout.ACPI:
        raise Invalid(
            f"the ACPI tables of {board.processors} processors and {len(board.devices)} devices "
            f"have {len(blob)} bytes: {layout.ACPI_END - layout.ACPI} are there for them"
        )
    memory.write(base, blob)
    return base


def build(board: Board, base: int = layout.ACPI) -> bytes:
    """RSDP and all tables, to be put at ``base``."""
    blob = bytearray(_RSDP_LENGTH)

    def add(table: bytes) -> int:
        blob.extend(bytes(-len(blob) % 16))
        blob.extend(table)
        return base + len(blob) - len(table)

    described = add(dsdt(board))
    tables = [add(fadt(described)), add(madt(board.processors))]
    blob[:_RSDP_LENGTH] = rsdp(add(xsdt(tables)))
    return bytes(blob)


def _sealed(table: bytes, at: int = 9) -> bytes:
    """With the byte that makes the sum of all zero."""
    return table[:at] + bytes((-sum(table) & 0xFF,)) + table[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A header, table 5.4, and the body."""
    length = _HEADER.size + len(body)
    return _sealed(_HEADER.pack(signature, length, revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1) + body)


def rsdp(xsdt_address: int) -> bytes:
    """The pointer that everything hangs from, revision 2. Section 5.2.5.3."""
    first = _sealed(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0), at=8)
    return _sealed(first + struct.pack("<IQB3x", _RSDP_LENGTH, xsdt_address, 0), at=32)


def xsdt(addresses: Sequence[int]) -> bytes:
    """Where the other tables lie. Section 5.2.8."""
    return _table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def _register(port: int) -> bytes:
    """A generic address: one byte at a port. Section 5.2.3.2."""
    return struct.pack("<BBBBQ", 1, 8, 0, 1, port)


def fadt(dsdt_address: int) -> bytes:
    """Fixed hardware: there is none but three registers. Section 5.2.9; offsets are its."""
    table = bytearray(276)
    flags = _WBINVD | _POWER_BUTTON | _SLEEP_BUTTON | _RESET_REGISTER | _HW_REDUCED
    struct.pack_into("<H", table, 109, _NO_VGA | _NO_CMOS_RTC)
    struct.pack_into("<I", table, 112, flags)
    table[116:128] = _register(layout.RESET)
    table[128] = layout.RESET_VALUE
    table[131] = 5  # the minor version of ACPI 6.5
    struct.pack_into("<Q", table, 140, dsdt_address)
    table[244:256] = _register(layout.SLEEP_CONTROL)
    table[256:268] = _register(layout.SLEEP_STATUS)
    table[268:276] = _OEM_TABLE
    return _table(b"FACP", 6, bytes(table[_HEADER.size :]))


def madt(processors: int) -> bytes:
    """Interrupt controllers. Section 5.2.12. No PIC beside them: PCAT_COMPAT is clear."""
    parts = [struct.pack("<II", layout.LAPIC, 0)]
    for index in range(processors):
        if index < _APIC_MAX:
            parts.append(struct.pack("<BBBBI", 0, 8, index, index, 1))
        else:
            parts.append(struct.pack("<BBHIII", 9, 16, 0, index, 1, index))
    parts.append(struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0))
    return _table(b"APIC", 5, b"".join(parts))


def dsdt(board: Board) -> bytes:
    """Devices, and which value written to the sleep register means off. Revision 2: integers have 64 bits."""
    if len(board.devices) > _DEVICES_MAX:
        raise Invalid(f"a machine of {len(board.devices)} virtio-mmio devices: {_DEVICES_MAX} can be named")
    terms = [_virtio(number, item) for number, item in enumerate(board.devices)]
    if board.serial is not None:
        terms.insert(0, _serial(board.serial))
    if board.button:
        terms += _button(board.button)
    off = aml.name("_S5", aml.package(aml.integer(layout.S5), aml.integer(0)))
    return _table(b"DSDT", 2, off + aml.scope("\\_SB", *terms))


def _serial(serial: Serial) -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.io(serial.port, layout.SERIAL_SIZE), aml.interrupt(serial.gsi))),
    )


def _virtio(number: int, item: Mmio) -> bytes:
    """Linux's virtio_mmio.c looks for this string; _CCA says that its memory accesses are coherent."""
    return aml.device(
        f"V{number:03X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.memory32(item.address, item.length), aml.interrupt(item.gsi))),
    )


def _button(gsi: int) -> list[bytes]:
    """A power button, and the generic event device whose interrupt presses it. Section 5.6.9; 0x80 is "pressed"."""
    return [
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")), aml.name("_UID", aml.integer(0))),
        aml.device(
            "GED",
            aml.name("_HID", aml.string("ACPI0013")),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(aml.interrupt(gsi))),
            aml.method("_EVT", 1, aml.notify("\\_SB.PWRB", 0x80)),
        ),
    ]
