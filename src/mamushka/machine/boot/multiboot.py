"""Multiboot 1: how bare-metal programs and hobby kernels ask to be loaded. Multiboot Specification 0.6.96.

A header in the first 8 KiB says so; the file is ELF, or the header itself tells where its bytes go. The program begins
in 32-bit mode with a magic number in EAX and the address of a table in EBX: memory, command line, modules, memory map.
As with other loaders the command line begins with the kernel's name.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid, Unsupported
from mamushka.machine.boot import elf, layout, segments
from mamushka.machine.boot.memory_map import low_ram, memory_map
from mamushka.machine.boot.placing import place_command_line
from mamushka.machine.memory import PAGE
from mamushka.machine.vcpu import Entry
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.boot.placing import Told
    from mamushka.machine.memory import Memory

_MAGIC, _STARTED = 0x1BADB002, 0x2BADB002
_SEARCHED = 8192
# What a header may demand: aligned modules and memory information are always given. The upper bits are no demands.
_ALIGN, _MEMORY, _ADDRESSES = 1, 2, 1 << 16
_DEMANDS = 0xFFFF
# What the information has: memory, command line, modules, memory map, the loader's name.
_HAS = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
_INFORMATION = struct.Struct("<IIIIIII16xIIIIIII16x")
_STRETCH = struct.Struct("<IQQI")
_MODULE = struct.Struct("<IIII")
_NAME = b"mamushka\0"
# Their list must fit in front of the zero page; a hundred are far more than anybody gives.
_MODULES_MAX = 128


@value
class Header:
    """What the file demands; ``addresses`` are where it begins, ends, where zeros behind it end, and its entry."""

    place: int
    flags: int
    addresses: tuple[int, int, int, int] | None
    offset: int = 0  # of what is loaded in the file, with addresses


def find(image: memoryview) -> Header | None:
    """The header, four-byte aligned in the first 8 KiB with a sum of zero; None where there is none."""
    head = bytes(image[:_SEARCHED])
    magic = struct.pack("<I", _MAGIC)
    place = head.find(magic)
    while place >= 0:
        if place % 4 == 0 and place + 12 <= len(head):
            flags, checksum = struct.unpack_from("<II", head, place + 4)
            if _MAGIC + flags + checksum & 0xFFFF_FFFF == 0:
                return _header(image, place, flags)
        place = head.find(magic, place + 1)
    return None


def _header(image: memoryview, place: int, flags: int) -> Header:
    unknown = flags & _DEMANDS & ~(_ALIGN | _MEMORY)
    if unknown:
        what = "a video mode" if unknown == 4 else f"something unknown (flags {unknown:#x})"
        raise Unsupported(f"the multiboot kernel demands {what}, which this machine has not")
    if not flags & _ADDRESSES:
        return Header(place, flags, None)
    if place + 32 > len(image):
        raise Invalid("the multiboot kernel ends in its header")
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", image, place + 12)
    offset = place - (header - load)
    load_end = load_end or load + len(image) - offset
    bss_end = max(bss_end, load_end)
    if not 0 <= offset <= place or not load <= header or not load <= load_end or load_end - load > len(image) - offset:
        raise Invalid(
            f"the multiboot kernel's addresses contradict its file of {len(image)} bytes: header at {header:#x}, "
            f"loaded from {load:#x} to {load_end:#x}"
        )
    return Header(place, flags, (load, load_end, bss_end, entry), offset)


def _program(image: memoryview, header: Header) -> elf.Elf:
    """What goes where. Invalid where neither the header nor the file tells."""
    if header.addresses is not None:
        load, load_end, bss_end, entry = header.addresses
        segment = elf.Segment(elf.LOAD, header.offset, load, load, load_end - load, bss_end - load)
        if not segment.length:
            raise Invalid("the multiboot kernel has nothing to load")
        return elf.Elf(32, elf.EXECUTABLE, elf.I386, entry, (segment,))
    if not elf.recognise(image):
        raise Invalid("the multiboot kernel is no ELF file, and its header does not tell where it goes")
    file = elf.parse(image)
    if file.machine not in (elf.I386, elf.X86_64):
        raise Invalid(f"the multiboot kernel is for {elf.MACHINES.get(file.machine, file.machine)}")
    return file


def load(memory: Memory, image: memoryview, header: Header, told: Told) -> Entry:
    """Write the program, its modules and what it is told into memory."""
    file = _program(image, header)
    end = low_ram(memory)
    elf.place(memory, image, file, above=layout.HIGH, below=end)
    placed = _place_modules(memory, told.initramfs, file.end, end)
    words = (_word(told.name), *((told.command_line,) if told.command_line else ()))
    text = place_command_line(memory, b" ".join(words), layout.COMMAND_LINE_MAX)
    stretches = [_STRETCH.pack(20, item.start, item.length, item.kind) for item in memory_map(memory, told.extra)]
    table = b"".join(stretches)
    label = layout.START + _INFORMATION.size
    listed = label + len(_NAME) + -len(_NAME) % 4
    nothing = label + len(_NAME) - 1  # an empty text, for the modules' own command lines
    memory.write(label, _NAME)
    memory.write(listed, b"".join(_MODULE.pack(start, stop, nothing, 0) for start, stop in placed))
    memory.write(layout.ZERO_PAGE, table)
    lower, upper = min(end, layout.LOW_END) >> 10, max(end - layout.HIGH, 0) >> 10
    information = _INFORMATION.pack(
        _HAS, lower, upper, 0, text, len(placed), listed, len(table), layout.ZERO_PAGE, 0, 0, 0, label, 0
    )
    memory.write(layout.START, information)
    return Entry(
        mode="protected",
        registers={"rip": file.entry, "rax": _STARTED, "rbx": layout.START, "rsp": layout.STACK, "rflags": 2},
        gdt=segments.write_table(memory, segments.PROTECTED),
        table=segments.PROTECTED,
    )


def _word(name: str) -> bytes:
    """A file's name as its bytes, without what would end or split a word."""
    raw = name.encode(errors="surrogateescape")
    return bytes(byte for byte in raw if byte > 0x20) or b"kernel"


def _place_modules(
    memory: Memory, modules: Sequence[bytes | memoryview], above: int, below: int
) -> list[tuple[int, int]]:
    """Write them behind the kernel, each on a page of its own; first address and the one behind the last."""
    if len(modules) > _MODULES_MAX:
        raise Invalid(f"{len(modules)} multiboot modules: {_MODULES_MAX} are room for")
    found, place = [], above
    for module in modules:
        place += -place % PAGE
        if place + len(module) > below:
            raise Invalid(
                f"the machine's memory is too small: a module of {len(module)} bytes does not fit below {below:#x}",
                hint="give the machine more memory",
            )
        memory.write(place, module)
        found.append((place, place + len(module)))
        place += len(module)
    return found
