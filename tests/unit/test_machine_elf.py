"""ELF files, PVH and multiboot: what the first virtual CPU and the start information are, and what is refused."""

import gzip
import lzma
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid, Unsupported
from mamushka.machine.boot import elf, layout, load, multiboot, pvh
from mamushka.machine.memory import Memory, Region

MIB = 1 << 20


def elf64(
    *, note: bytes = b"", machine: int = elf.X86_64, kind: int = 2, entry: int = MIB, address: int = MIB
) -> bytes:
    """A kernel of one segment of 16 bytes, 16 more of zeros behind them, and perhaps a PVH note."""
    noted = struct.pack("<III4s", 4, len(note), 18, b"Xen\0") + note if note else b""
    headers = struct.pack("<IIQQQQQQ", elf.LOAD, 5, 176, 0xFFFFFFFF81000000, address, 16, 32, 4096)
    headers += struct.pack("<IIQQQQQQ", elf.NOTE, 4, 192, 0, 0, len(noted), len(noted), 4)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    return head + headers + b"kernel's own text"[:16] + noted


def elf32(flags: int = 3, header: bytes | None = None) -> bytes:
    """A multiboot kernel of one segment, which begins with its header."""
    if header is None:
        header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, elf.I386, 1, MIB + 12, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<IIIIIIII", elf.LOAD, 84, MIB, MIB, len(header), 8192, 7, 4096)
    return head + header


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory((Region(0, 4 * MIB),))
    yield made
    made.close()


def unpack(memory: Memory, layout_: str, address: int) -> tuple[int, ...]:
    return struct.unpack(layout_, memory.read(address, struct.calcsize(layout_)))


def text(memory: Memory, address: int) -> bytes:
    return bytes(memory.read(address, 100)).partition(b"\0")[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=("plain", "gzip", "xz"))
def test_pvh_is_told_everything(memory: Memory, pack: "type[bytes]") -> None:
    memory.write(MIB, b"x" * 64)
    image = pack(elf64(note=struct.pack("<Q", MIB + 4)))
    entry = load(memory, image, command_line=b"quiet", initramfs=[b"abc"], rsdp=0xE0000)
    assert (entry.mode, entry.registers["rip"], entry.registers["rbx"]) == ("protected", MIB + 4, layout.START)
    assert memory.read(MIB, 34) == b"kernel's own tex" + bytes(16) + b"xx"
    magic, version, flags, modules, modlist, line, rsdp, table, entries, _ = unpack(memory, "<4I4Q2I", layout.START)
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, 0xE0000)
    assert text(memory, line) == b"quiet"
    address, length, _, _ = unpack(memory, "<4Q", modlist)
    assert memory.read(address, length) == b"abc"
    found = [unpack(memory, "<QQII", table + 24 * number)[:3] for number in range(entries)]
    assert found == [(0, 0x9FC00, 1), (0xE0000, 0x20000, 3), (MIB, 3 * MIB, 1)]


def test_a_vmlinux_without_a_note_begins_as_linux_does(memory: Memory) -> None:
    entry = load(memory, elf64(), command_line=b"quiet")
    assert (entry.mode, entry.registers["rip"], entry.registers["rsi"]) == ("long", MIB, layout.ZERO_PAGE)
    page = bytes(memory.read(layout.ZERO_PAGE, 4096))
    assert page[0x1FE:0x200] + page[0x202:0x208] == b"\x55\xaaHdrS\x0f\x02"
    assert text(memory, struct.unpack_from("<I", page, 0x228)[0]) == b"quiet"


def test_multiboot_is_told_everything(memory: Memory) -> None:
    entry = load(memory, elf32(), command_line=b"one two", initramfs=[b"abc", b"defg"])
    assert entry.mode == "protected"
    assert entry.registers["rip"] == MIB + 12
    assert (entry.registers["rax"], entry.registers["rbx"]) == (0x2BADB002, layout.START)
    numbers = unpack(memory, "<22I", layout.START)
    flags, lower, upper, _, line, count, modules = numbers[:7]
    length, table = numbers[11:13]
    assert flags == 0x24D
    assert (lower, upper) == (639, 3 * 1024)
    assert text(memory, line) == b"kernel one two"
    assert text(memory, numbers[16]) == b"mamushka"
    found = [unpack(memory, "<4I", modules + 16 * number) for number in range(count)]
    assert [bytes(memory.read(start, end - start)) for start, end, _, _ in found] == [b"abc", b"defg"]
    assert all(start % 4096 == 0 and start >= MIB + 8192 for start, *_ in found)
    assert text(memory, found[0][2]) == b""
    stretches = [unpack(memory, "<IQQI", place) for place in range(table, table + length, 24)]
    assert stretches == [(20, 0, 0x9FC00, 1), (20, 0xE0000, 0x20000, 3), (20, MIB, 3 * MIB, 1)]


def test_multiboot_headers_can_tell_the_addresses(memory: Memory) -> None:
    flags = 1 << 16
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    header += struct.pack("<5I", MIB + 8, MIB, 0, MIB + 8192, MIB + 40)
    entry = load(memory, b"12345678" + header + b"code")
    assert entry.registers["rip"] == MIB + 40
    assert memory.read(MIB, 44) == b"12345678" + header + b"code"


@pytest.mark.parametrize(
    ("image", "kind", "match"),
    [
        (elf64(note=b"\0\0\x10"), Invalid, "3 bytes"),
        (elf64(note=struct.pack("<I", 5 * MIB)), Invalid, "where nothing of it lies"),
        (elf64(note=struct.pack("<Q", MIB), address=MIB - 16), Invalid, "from 0x100000 on"),
        (elf64(entry=16 * MIB, address=16 * MIB), Invalid, "memory is too small"),
        (elf64()[:180], Invalid, "cut short"),
        (elf64(machine=183), Unsupported, "64-bit ARM"),
        (elf64(kind=3), Unsupported, "program for an operating system"),
        (elf64(entry=0x400), Unsupported, "entry lies in none"),
        (elf32(flags=4), Unsupported, "video mode"),
        (elf32(flags=8), Unsupported, "unknown"),
        (elf32()[84:], Invalid, "no ELF file"),
        (gzip.compress(elf64())[:-9], Invalid, "middle of its gzip"),
        (gzip.compress(b"text"), Unsupported, "not known"),
    ],
)
def test_what_cannot_be_booted_is_refused(memory: Memory, image: bytes, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        load(memory, image)


KERNELS = (elf64(note=struct.pack("<Q", MIB)), elf64(), elf32(), elf32(flags=1 << 16))


@given(
    st.sampled_from(KERNELS),
    st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=8),
    st.integers(0, 250),
)
def test_any_mangled_kernel_is_loaded_or_refused(image: bytes, changes: list[tuple[int, int]], length: int) -> None:
    mangled = bytearray(image)
    for place, byte in changes:
        mangled[place % len(mangled)] = byte
    memory = Memory((Region(0, 2 * MIB),))
    try:
        entry = load(memory, bytes(mangled[: max(length, 4)]))
        assert entry.mode in ("long", "protected")
    except (Invalid, Unsupported):
        pass
    finally:
        memory.close()


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic_are_parsed_or_refused(raw: bytes) -> None:
    for head in (b"\x7fELF\x01\x01", b"\x7fELF\x02\x01"):
        view = memoryview(head + raw)
        try:
            file = elf.parse(view)
            pvh.entry_point(view, file)
        except Invalid:
            continue
    try:
        multiboot.find(memoryview(raw))
    except (Invalid, Unsupported):
        pass


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(0, 70), st.integers(0, 5))
def test_sections_of_any_bytes_are_found_or_refused(raw: bytes, offset: int, size: int, count: int) -> None:
    head = bytearray((b"\x7fELF\x02\x01" + raw).ljust(64, b"\0"))
    struct.pack_into("<Q", head, 40, offset)
    struct.pack_into("<HH", head, 58, size, count)
    try:
        elf.section(memoryview(head), b".modinfo")
    except Invalid:
        pass
