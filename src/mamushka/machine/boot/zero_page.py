"""The zero page, struct boot_params: what Linux on x86 is told. Linux, Documentation/arch/x86/zero-page.rst.

It is one page of zeros with the kernel's own setup header in its place, changed where a loader has something to say,
and the memory map. Offsets are those of the document; all numbers are little endian.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.boot.memory_map import Stretch

SIZE = 4096
HEADER = 0x1F1
# The header grows with the protocol; what follows it in the page begins here.
_HEADER_END = 0x290
_RSDP = 0x070
_E820_COUNT, _E820 = 0x1E8, 0x2D0
_LOADER = 0x210
_RAMDISK, _RAMDISK_EXTENDED = 0x218, 0x0C0
_COMMAND_LINE, _COMMAND_LINE_EXTENDED = 0x228, 0x0C8
_SETUP_DATA = 0x250
# A loader without a number of its own.
_UNDEFINED = 0xFF


def build(
    header: bytes, stretches: Sequence[Stretch], *, command_line: int, initramfs: tuple[int, int], rsdp: int
) -> bytes:
    """The page. ``initramfs`` is where and how long; ``header`` are the kernel file's bytes from 0x1f1 on."""
    page = bytearray(SIZE)
    kept = header[: _HEADER_END - HEADER]
    page[HEADER : HEADER + len(kept)] = kept
    struct.pack_into("<Q", page, _RSDP, rsdp)
    page[_LOADER] = _UNDEFINED
    address, length = initramfs
    struct.pack_into("<II", page, _RAMDISK, address & 0xFFFF_FFFF, length & 0xFFFF_FFFF)
    struct.pack_into("<II", page, _RAMDISK_EXTENDED, address >> 32, length >> 32)
    struct.pack_into("<I", page, _COMMAND_LINE, command_line)
    struct.pack_into("<I", page, _COMMAND_LINE_EXTENDED, 0)
    struct.pack_into("<Q", page, _SETUP_DATA, 0)
    page[_E820_COUNT] = len(stretches)
    for number, stretch in enumerate(stretches):
        struct.pack_into("<QQI", page, _E820 + 20 * number, stretch.start, stretch.length, stretch.kind)
    return bytes(page)
