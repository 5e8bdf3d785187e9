"""Executable files, as much of them as putting a kernel into memory takes: segments, notes, the entry.

System V ABI, generic, chapters 4 and 5, and its x86 supplements. Kernels are ELF files whose segments say by their
*physical* addresses where they want to lie. Any bytes are parsed or refused with Invalid; nothing is read twice.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.machine.memory import Memory

EXECUTABLE, SHARED = 2, 3
I386, X86_64 = 3, 62
MACHINES = {3: "x86 of 32 bits", 62: "x86_64", 40: "32-bit ARM", 183: "64-bit ARM", 243: "RISC-V", 21: "PowerPC"}
LOAD, INTERPRETER, NOTE = 1, 3, 4

# Kernels have five to ten program headers; the limit is far above them and keeps a broken file from costing time.
_HEADERS_MAX = 256
# So too for notes, of which the Xen ones of Linux are sixteen.
_NOTES_MAX = 1024


@value
class Segment:
    """A program header; ``address`` is the physical one."""

    kind: int
    offset: int
    virtual: int
    address: int
    stored: int  # bytes in the file
    length: int  # bytes in memory; what is more than stored is zero

    @property
    def end(self) -> int:
        """The first physical address behind it."""
        return self.address + self.length


@value
class Elf:
    """A file's header and its program headers."""

    bits: int
    kind: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]

    @property
    def loaded(self) -> tuple[Segment, ...]:
        """What goes into memory."""
        return tuple(segment for segment in self.segments if segment.kind == LOAD and segment.length)

    @property
    def start(self) -> int:
        """The lowest physical address of it all."""
        return min(segment.address for segment in self.loaded)

    @property
    def end(self) -> int:
        """The first physical address behind it all."""
        return max(segment.end for segment in self.loaded)


def recognise(image: memoryview) -> bool:
    """Whether it is one at all."""
    return bytes(image[:4]) == b"\x7fELF"


def parse(image: memoryview) -> Elf:
    """The headers. Invalid where they lead out of the file or nothing is to be loaded."""
    if len(image) < 64 or image[5] != 1 or image[4] not in (1, 2):
        raise Invalid("the kernel is a broken ELF file: not a little-endian one of 32 or 64 bits")
    bits = 32 * image[4]
    if bits == 64:
        kind, machine, _, entry, offset = struct.unpack_from("<HHIQQ", image, 16)
        size, count = struct.unpack_from("<HH", image, 54)
    else:
        kind, machine, _, entry, offset = struct.unpack_from("<HHIII", image, 16)
        size, count = struct.unpack_from("<HH", image, 42)
    least = 56 if bits == 64 else 32
    if not 0 < count <= _HEADERS_MAX or size < least or offset + size * count > len(image):
        raise Invalid(f"the kernel is a broken ELF file: {count} program headers of {size} bytes at {offset:#x}")
    segments = tuple(_segment(image, bits, offset + size * number) for number in range(count))
    found = Elf(bits, kind, machine, entry, segments)
    if not found.loaded:
        raise Invalid("the kernel is an ELF file with nothing to load")
    return found


def _segment(image: memoryview, bits: int, at: int) -> Segment:
    if bits == 64:
        kind, _, offset, virtual, address, stored, length = struct.unpack_from("<IIQQQQQ", image, at)
    else:
        kind, offset, virtual, address, stored, length = struct.unpack_from("<IIIIII", image, at)
    if kind in (LOAD, NOTE) and offset + stored > len(image):
        raise Invalid(
            f"the kernel is cut short: a segment ends at byte {offset + stored} of its ELF file, which has {len(image)}"
        )
    if kind == LOAD and (stored > length or address + length > 1 << bits):
        raise Invalid(f"the kernel is a broken ELF file: a segment of {length} bytes at {address:#x}, {stored} stored")
    return Segment(kind, offset, virtual, address, stored, length)


def notes(image: memoryview, file: Elf) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and description of each note. Broken ones end their segment's list."""
    left = _NOTES_MAX
    for segment in file.segments:
        if segment.kind != NOTE:
            continue
        place, end = segment.offset, segment.offset + segment.stored
        while place + 12 <= end and left:
            left -= 1
            name_size, size, kind = struct.unpack_from("<III", image, place)
            name = place + 12
            description = name + name_size + -name_size % 4
            place = description + size + -size % 4
            if description + size > end:
                break
            yield (
                bytes(image[name : name + name_size]).rstrip(b"\0"),
                kind,
                bytes(image[description : description + size]),
            )


def place(memory: Memory, image: memoryview, file: Elf, *, above: int, below: int) -> None:
    """Write all segments to their physical addresses. Invalid where one lies outside of ``[above, below)``."""
    for segment in file.loaded:
        if segment.address < above:
            raise Invalid(
                f"the kernel wants to lie at {segment.address:#x}: only from {above:#x} on there is room for it"
            )
        if segment.end > below:
            raise Invalid(
                f"the machine's memory is too small: the kernel reaches to {segment.end:#x}, memory to {below:#x}",
                hint="give the machine more memory",
            )
    for segment in file.loaded:
        view = memory.writable(segment.address, segment.length)
        view[: segment.stored] = image[segment.offset : segment.offset + segment.stored]
        view[segment.stored :] = bytes(segment.length - segment.stored)


# A module has some dozens; the limit keeps a broken file from costing time.
_SECTIONS_MAX = 1 << 12


def section(image: memoryview, wanted: bytes) -> memoryview:
    """A section's bytes by its name, of a 64-bit file; empty where there is none. Invalid where the file is broken."""
    if not recognise(image) or len(image) < 64 or image[4] != 2:
        raise Invalid("not a 64-bit ELF file")
    (offset,) = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    if not names < count <= _SECTIONS_MAX or size < 64 or offset + size * count > len(image):
        raise Invalid(f"a broken ELF file: {count} section headers of {size} bytes at {offset:#x}")

    def content(number: int) -> memoryview:
        start, length = struct.unpack_from("<QQ", image, offset + size * number + 24)
        return image[start : start + length]

    labels = bytes(content(names))
    for number in range(count):
        (label,) = struct.unpack_from("<I", image, offset + size * number)
        if labels[label : label + len(wanted) + 1] == wanted + b"\0":
            return content(number)
    return memoryview(b"")
