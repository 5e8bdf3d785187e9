"""Descriptor tables and page tables that the first virtual CPU begins with. Intel SDM volume 3, chapters 3 and 4.

Linux demands its flat code and data segments at the selectors 0x10 and 0x18 (Documentation/arch/x86/boot.rst, "64-bit
boot protocol"); a task segment, which processors with virtualization demand in their turn, follows at 0x20.
"""

from __future__ import annotations

import struct

from mamushka.machine.boot import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.memory import Memory

CODE, DATA, TASK = 0x10, 0x18, 0x20

_PAGE = 4096
_LARGE = 2 * layout.MIB
# Present and writable; for a large page also "page size".
_TABLE, _LARGE_PAGE = 0x3, 0x83
_MAPPED = 4 * layout.GIB


def _descriptor(flags: int, limit: int = 0xFFFFF) -> int:
    """A segment from address zero; ``flags`` are the type's eight bits, then granularity's four from bit 12."""
    return (limit & 0xFFFF) | flags << 40 | (limit & 0xF0000) << 32


# Sixteen bytes for the task segment: in long mode its descriptor is as long as that.
LONG = struct.pack("<6Q", 0, 0, _descriptor(0xA09B), _descriptor(0xC093), _descriptor(0x008B, 0x67), 0)
PROTECTED = struct.pack("<6Q", 0, 0, _descriptor(0xC09B), _descriptor(0xC093), _descriptor(0x008B, 0x67), 0)


def write_table(memory: Memory, table: bytes) -> int:
    """Put a descriptor table into memory; where it lies."""
    memory.write(layout.GDT, table)
    return layout.GDT


def write_page_tables(memory: Memory) -> int:
    """Map the first 4 GiB to themselves in pages of 2 MiB; the address of the first table."""
    top, second, third = layout.PAGE_TABLES, layout.PAGE_TABLES + _PAGE, layout.PAGE_TABLES + 2 * _PAGE
    count = _MAPPED // layout.GIB
    memory.write(top, struct.pack("<Q", second | _TABLE).ljust(_PAGE, b"\0"))
    pointers = (third + number * _PAGE | _TABLE for number in range(count))
    memory.write(second, struct.pack(f"<{count}Q", *pointers).ljust(_PAGE, b"\0"))
    pages = range(_LARGE_PAGE, _MAPPED, _LARGE)
    memory.write(third, struct.pack(f"<{len(pages)}Q", *pages))
    return top
