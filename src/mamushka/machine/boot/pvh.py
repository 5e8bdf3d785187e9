"""PVH: an uncompressed kernel (vmlinux) entered in 32-bit mode, as a note in the file asks for.

Xen, public/arch-x86/hvm/start_info.h and docs/misc/pvh.pandoc. The guest has no compressed kernel to
unpack; other systems than Linux (FreeBSD, rust-hypervisor-firmware) are entered so too. EBX points to the start
information, which points to the rest.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid
from mamushka.machine.boot import elf, layout, segments
from mamushka.machine.boot.memory_map import low_ram, memory_map
from mamushka.machine.boot.placing import place_command_line, place_initramfs
from mamushka.machine.vcpu import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.boot.placing import Told
    from mamushka.machine.memory import Memory

# XEN_ELFNOTE_PHYS32_ENTRY
_ENTRY_NOTE = 18
_MAGIC, _VERSION = 0x336EC578, 1
_INFORMATION = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_STRETCH = struct.Struct("<QQII")


def entry_point(image: memoryview, file: elf.Elf) -> int | None:
    """The physical address of the 32-bit entry; None where no note tells one."""
    for name, kind, description in elf.notes(image, file):
        if name == b"Xen" and kind == _ENTRY_NOTE:
            if len(description) not in (4, 8):
                raise Invalid(f"the kernel's PVH note has {len(description)} bytes: an address has 4 or 8")
            return int.from_bytes(description, "little")
    return None


def load(memory: Memory, image: memoryview, file: elf.Elf, entry: int, told: Told) -> Entry:
    """Write segments and start information into memory."""
    if not any(segment.address <= entry < segment.end for segment in file.loaded):
        raise Invalid(f"the kernel's PVH note points to {entry:#x}, where nothing of it lies")
    end = low_ram(memory)
    elf.place(memory, image, file, above=layout.HIGH, below=end)
    ramdisk, length = place_initramfs(memory, told.initramfs, above=file.end, below=end)
    text = place_command_line(memory, told.command_line, layout.COMMAND_LINE_MAX)
    stretches = memory_map(memory, told.extra)
    module = layout.START + 0x40
    memory.write(module, _MODULE.pack(ramdisk, length, 0, 0))
    memory.write(layout.ZERO_PAGE, b"".join(_STRETCH.pack(item.start, item.length, item.kind, 0) for item in stretches))
    modules = 1 if length else 0
    information = _INFORMATION.pack(
        _MAGIC, _VERSION, 0, modules, module * modules, text, told.rsdp, layout.ZERO_PAGE, len(stretches), 0
    )
    memory.write(layout.START, information)
    return Entry(
        mode="protected",
        registers={"rip": entry, "rbx": layout.START, "rsp": layout.STACK, "rflags": 2},
        gdt=segments.write_table(memory, segments.PROTECTED),
        table=segments.PROTECTED,
    )
