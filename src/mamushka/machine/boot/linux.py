"""bzImage: what distributions ship as vmlinuz, started by its 64-bit entry. Linux, Documentation/arch/x86/boot.rst.

The file is a boot sector and some more of 16-bit code, which is passed over, then the kernel proper: a program that
unpacks the compressed kernel behind itself and goes there. It is put at the address that it prefers (there it need not
move itself) or, where that is not free, at any aligned one. It begins in long mode with its first 4 GiB mapped, the
zero page's address in RSI, 0x200 behind the place where it was put.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid, Unsupported
from mamushka.machine.boot import elf, layout, segments, zero_page
from mamushka.machine.boot.memory_map import low_ram, memory_map
from mamushka.machine.boot.placing import place_command_line, place_initramfs
from mamushka.machine.vcpu import Entry
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.boot.placing import Told
    from mamushka.machine.memory import Memory

SECTOR = 512
# The 64-bit entry came with protocol 2.12 (Linux 3.8), and lies this far behind the beginning.
PROTOCOL_MIN = 0x20C
ENTRY = 0x200
# xloadflags
XLF_KERNEL_64 = 1
# Kernels before 2.06 told no limit for the command line; the limit was this one.
_COMMAND_LINE_OLD = 255
# x86's COMMAND_LINE_SIZE is 2048 with the NUL; an unpacked kernel has no header to tell it.
_COMMAND_LINE_VMLINUX = 2047
# Nor one to be copied: what Linux itself reads of it at its 64-bit entry is that there is one, of protocol 2.15.
_MADE_UP = bytes(0x1FE - zero_page.HEADER) + b"\x55\xaa\0\0HdrS\x0f\x02" + bytes(0x88)


@value
class Header:
    """The setup header's fields that matter here; ``raw`` are its bytes as they were."""

    raw: bytes
    protocol: int
    setup: int  # bytes of 16-bit code in front of the kernel
    length: int  # bytes of the kernel behind it
    relocatable: bool
    alignment: int
    preferred: int
    memory: int  # bytes from where it lies that it writes to before it knows the memory map
    initrd_max: int  # the last address that an initramfs may reach
    command_line_max: int
    payload: tuple[int, int]  # offset behind the setup code and length of the compressed kernel; zeros before 2.08


def recognise(image: memoryview) -> bool:
    """Whether this is a bzImage, of whatever age."""
    return bytes(image[0x1FE:0x200]) == b"\x55\xaa" and bytes(image[0x202:0x206]) == b"HdrS"


def parse(image: memoryview) -> Header:
    """The header. Invalid where the file is cut short or contradicts itself, Unsupported where it is not 64-bit."""
    if len(image) < 0x268:
        raise Invalid(f"the kernel is a bzImage of {len(image)} bytes: it ends in its header")
    raw = bytes(image[zero_page.HEADER : 0x202 + image[0x201]])
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < PROTOCOL_MIN:
        raise Unsupported(
            f"the kernel speaks boot protocol {protocol >> 8}.{protocol & 0xFF:02}: the 64-bit entry came with 2.12",
            hint="a kernel for x86_64, of Linux 3.8 or later, is needed",
        )
    (xloadflags,) = struct.unpack_from("<H", image, 0x236)
    if not xloadflags & XLF_KERNEL_64:
        raise Unsupported("the kernel is a 32-bit one: it has no 64-bit entry", hint="use a kernel for x86_64")
    setup = ((image[0x1F1] or 4) + 1) * SECTOR
    (paragraphs,) = struct.unpack_from("<I", image, 0x1F4)
    length = paragraphs * 16
    # A signature may follow, or padding; up to 15 bytes may be missing from the last paragraph.
    if setup + length - 15 > len(image) or length < ENTRY:
        raise Invalid(f"the kernel is cut short: {setup + length} bytes by its header, {len(image)} in its file")
    alignment, relocatable = struct.unpack_from("<IB", image, 0x230)
    if alignment & (alignment - 1) or not 4096 <= alignment <= layout.GIB:
        raise Invalid(f"the kernel asks for an alignment of {alignment:#x}: not a power of two from 4 KiB to 1 GiB")
    (command_line_max,) = struct.unpack_from("<I", image, 0x238)
    payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
    preferred, init_size = struct.unpack_from("<QI", image, 0x258)
    return Header(
        raw=raw,
        protocol=protocol,
        setup=setup,
        length=min(length, len(image) - setup),
        relocatable=bool(relocatable),
        alignment=alignment,
        preferred=preferred,
        memory=max(init_size, length),
        initrd_max=struct.unpack_from("<I", image, 0x22C)[0],
        command_line_max=command_line_max or _COMMAND_LINE_OLD,
        payload=(payload_offset, payload_length),
    )


def _address(header: Header, end: int) -> int:
    """Where the kernel is put. Invalid where it cannot be."""
    if header.preferred >= layout.HIGH and header.preferred + header.memory <= end:
        return header.preferred
    lowest = -(-layout.HIGH // header.alignment) * header.alignment
    if not header.relocatable or lowest + header.memory > end:
        why = "" if header.relocatable else f" at {header.preferred:#x} and nowhere else"
        raise Invalid(
            f"the machine's memory is too small: {end >> 20} MiB, the kernel needs {header.memory >> 20} MiB{why}",
            hint="give the machine more memory",
        )
    return lowest


def load(memory: Memory, image: memoryview, told: Told) -> Entry:
    """Write everything that the kernel finds at its start into memory."""
    header = parse(image)
    end = low_ram(memory)
    address = _address(header, end)
    memory.write(address, image[header.setup : header.setup + header.length])
    limit = min(end, header.initrd_max + 1) if header.initrd_max else end
    ramdisk = place_initramfs(memory, told.initramfs, above=address + header.memory, below=limit)
    text = place_command_line(memory, told.command_line, header.command_line_max)
    page = zero_page.build(
        header.raw, memory_map(memory, told.extra), command_line=text, initramfs=ramdisk, rsdp=told.rsdp
    )
    return _entry(memory, address + ENTRY, page)


def is_vmlinux(file: elf.Elf) -> bool:
    """Whether an ELF file may be an unpacked kernel without a PVH note: its entry is a physical address within it."""
    inside = any(segment.address <= file.entry < segment.end for segment in file.loaded)
    return file.machine == elf.X86_64 and file.bits == 64 and file.kind == elf.EXECUTABLE and inside


def load_vmlinux(memory: Memory, image: memoryview, file: elf.Elf, told: Told) -> Entry:
    """The same for an unpacked kernel, whose entry wants what that of the compressed one wants."""
    end = low_ram(memory)
    elf.place(memory, image, file, above=layout.HIGH, below=end)
    ramdisk = place_initramfs(memory, told.initramfs, above=file.end, below=end)
    text = place_command_line(memory, told.command_line, _COMMAND_LINE_VMLINUX)
    page = zero_page.build(
        _MADE_UP, memory_map(memory, told.extra), command_line=text, initramfs=ramdisk, rsdp=told.rsdp
    )
    return _entry(memory, file.entry, page)


def _entry(memory: Memory, address: int, page: bytes) -> Entry:
    memory.write(layout.ZERO_PAGE, page)
    return Entry(
        mode="long",
        registers={"rip": address, "rsi": layout.ZERO_PAGE, "rsp": layout.STACK, "rflags": 2},
        cr3=segments.write_page_tables(memory),
        gdt=segments.write_table(memory, segments.LONG),
        table=segments.LONG,
    )
