"""bzImage: a made-up kernel file's parts end where the boot protocol says, and broken files are refused."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid, Unsupported
from mamushka.machine.boot import layout, linux, load, memory_map
from mamushka.machine.memory import PMEM, Memory, Region

MIB = 1 << 20


def bzimage(**fields: int) -> bytes:
    """A file with a header as a kernel of Linux 6.1 has it, two sectors of setup code and a page of kernel."""
    header = {
        "protocol": 0x20F, "sectors": 1, "paragraphs": 4096 // 16, "alignment": 0x200000, "relocatable": 1,
        "xloadflags": 3, "command_line": 2047, "preferred": 16 * MIB, "init_size": 4 * MIB, "initrd_max": 0x7FFFFFFF,
    } | fields  # fmt: skip
    image = bytearray(2 * 512 + 4096)
    image[0x1F1] = header["sectors"]
    struct.pack_into("<I", image, 0x1F4, header["paragraphs"])
    image[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<H", image, 0x206, header["protocol"])
    struct.pack_into("<I", image, 0x22C, header["initrd_max"])
    struct.pack_into("<IBBHI", image, 0x230, *(header[key] for key in ("alignment", "relocatable")), 21,
                     header["xloadflags"], header["command_line"])  # fmt: skip
    struct.pack_into("<QI", image, 0x258, header["preferred"], header["init_size"])
    image[1024:] = b"K" * 4096
    return bytes(image)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory((Region(0, 64 * MIB),))
    yield made
    made.close()


def test_everything_is_where_the_protocol_says(memory: Memory) -> None:
    entry = load(memory, bzimage(), command_line=b"quiet", initramfs=[b"abcde", b"fg"], rsdp=0xE0000)
    page = bytes(memory.read(layout.ZERO_PAGE, 4096))
    assert entry.mode == "long"
    assert entry.registers == {"rip": 16 * MIB + 0x200, "rsi": layout.ZERO_PAGE, "rsp": layout.STACK, "rflags": 2}
    assert memory.read(16 * MIB, 4096) == b"K" * 4096
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    address, length = struct.unpack_from("<II", page, 0x218)
    assert (address, bytes(memory.read(address, length))) == (64 * MIB - 4096, b"abcde\0\0\0fg")
    (text,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(text, 6) == b"quiet\0"


def test_the_memory_map(memory: Memory) -> None:
    memory.add(Region(layout.PMEM, 16 * MIB, kind=PMEM))
    memory.add(Region(layout.HOLE_END, MIB))
    load(memory, bzimage())
    page = bytes(memory.read(layout.ZERO_PAGE, 4096))
    found = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * number) for number in range(page[0x1E8])]
    assert found == [
        (0, 0x9FC00, 1),
        (0xE0000, 0x20000, 3),
        (MIB, 63 * MIB, 1),
        (4 << 30, MIB, 1),
        (256 << 30, 16 * MIB, 12),
    ]


def test_a_map_too_long_is_refused(memory: Memory) -> None:
    extra = [memory_map.Stretch((1 << 40) + (number << 30), MIB, 12) for number in range(126)]
    with pytest.raises(Invalid, match="holds 128"):
        load(memory, bzimage(), extra=extra)


def test_the_page_tables_map_each_address_to_itself(memory: Memory) -> None:
    entry = load(memory, bzimage())

    def walk(gva: int) -> int:
        table = entry.cr3
        for shift in (39, 30):
            (item,) = struct.unpack_from("<Q", memory.read(table + (gva >> shift & 511) * 8, 8))
            assert item & 3 == 3
            table = item & ~0xFFF
        (item,) = struct.unpack_from("<Q", memory.read(table + (gva >> 21 & 511) * 8, 8))
        assert item & 0x83 == 0x83
        return int(item & ~0x1FFFFF | gva & 0x1FFFFF)

    for gva in (0, 0x7000, MIB, 17 * MIB + 5, 0xD0000010, 0xFEE00000, 0xFFFFFFFF):
        assert walk(gva) == gva


def test_where_the_preferred_address_is_not_free_it_is_moved(memory: Memory) -> None:
    entry = load(memory, bzimage(preferred=63 * MIB))
    assert entry.registers["rip"] == 2 * MIB + 0x200


def test_an_initramfs_stays_below_the_kernels_limit(memory: Memory) -> None:
    load(memory, bzimage(initrd_max=32 * MIB - 1), initramfs=[b"x" * 5000])
    (address,) = struct.unpack_from("<I", memory.read(layout.ZERO_PAGE + 0x218, 4))
    assert address == 32 * MIB - 8192


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"paragraphs": 4096}, "cut short"),
        ({"alignment": 0x30000}, "alignment"),
        ({"init_size": 65 * MIB}, "memory is too small"),
        ({"preferred": 63 * MIB, "relocatable": 0}, "nowhere else"),
        ({"initrd_max": 17 * MIB}, "initramfs"),
        ({"command_line": 4}, "command line"),
    ],
)
def test_what_cannot_work_is_refused(memory: Memory, fields: dict[str, int], match: str) -> None:
    with pytest.raises(Invalid, match=match):
        load(memory, bzimage(**fields), command_line=b"quiet", initramfs=[bytes(5000)])


def test_a_kernel_without_the_64_bit_entry_is_refused(memory: Memory) -> None:
    with pytest.raises(Unsupported, match=r"2\.11"):
        load(memory, bzimage(protocol=0x20B))
    with pytest.raises(Unsupported, match="32-bit"):
        load(memory, bzimage(xloadflags=2))


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (bytes(56) + b"ARM\x64", "64-bit ARM"),
        (bytes(48) + b"RISCV\0\0\0RSC\x05", "RISC-V"),
        (b"MZ" + bytes(62), "EFI"),
        (b"\x27\x05\x19\x56", "U-Boot"),
        (b"#!/bin/sh", "not known"),
        (b"", "not known"),
    ],
)
def test_other_images_are_refused_with_what_they_are(memory: Memory, head: bytes, match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        load(memory, head)


@given(st.integers(0, 5120), st.lists(st.tuples(st.integers(0x1F0, 0x270), st.integers(0, 255)), max_size=6))
def test_any_mangled_kernel_is_parsed_or_refused(length: int, changes: list[tuple[int, int]]) -> None:
    image = bytearray(bzimage())
    for place, byte in changes:
        image[place] = byte
    view = memoryview(image)[:length]
    if linux.recognise(view):
        try:
            header = linux.parse(view)
        except (Invalid, Unsupported):
            return
        assert header.setup + header.length <= len(view)
