"""The smallest devices: fw_cfg, the exit ports, the test device, PCI's address register."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.machine.devices.debug_exit import BochsShutdown, DebugExit
from mamushka.machine.devices.fwcfg import FwCfg
from mamushka.machine.devices.testdev import Flush, Lines


def item(device: FwCfg, key: int, length: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(length))


@pytest.fixture
def fwcfg() -> FwCfg:
    return FwCfg(ram=5 << 30, processors=3, command_line=b"a b", initrd=b"xyz", files={"opt/b": b"2", "opt/a": b"11"})


def test_items_are_those_of_the_specification(fwcfg: FwCfg) -> None:
    assert item(fwcfg, 0, 6) == b"QEMU\0\0"
    assert item(fwcfg, 1, 4) == b"\1\0\0\0"
    assert item(fwcfg, 3, 8) == struct.pack("<Q", 5 << 30)
    assert item(fwcfg, 5, 2) == item(fwcfg, 0xF, 2) == b"\3\0"
    assert item(fwcfg, 0x14, 4) == b"\4\0\0\0"
    assert item(fwcfg, 0x15, 4) == b"a b\0"
    assert item(fwcfg, 0xB, 4) + item(fwcfg, 0x12, 3) == b"\3\0\0\0xyz"
    assert item(fwcfg, 0x8003, 8) == item(fwcfg, 0x77, 8) == bytes(8)


def test_files_are_found_by_their_names(fwcfg: FwCfg) -> None:
    directory = item(fwcfg, 0x19, 4 + 2 * 64)
    assert directory[:4] == b"\0\0\0\2"
    found = {}
    for size, key, _, name in struct.iter_unpack(">IHH56s", directory[4:]):
        found[name.rstrip(b"\0")] = item(fwcfg, key, size)
    assert found == {b"opt/a": b"11", b"opt/b": b"2"}
    with pytest.raises(Invalid, match="no name"):
        FwCfg(ram=1, processors=1, files={"x" * 56: b""})


def test_a_restored_one_reads_on(fwcfg: FwCfg) -> None:
    item(fwcfg, 0, 2)
    other = FwCfg(ram=1, processors=1)
    other.restore(fwcfg.save())
    assert other.read(1, 1) == ord("M")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.sampled_from((1, 2, 4, 8)), st.integers(0, 1 << 64))))
def test_any_accesses_are_answered(accesses: list[tuple[bool, int, int, int]]) -> None:
    devices = FwCfg(ram=1, processors=1), Lines(lambda line, level: None), Flush(), BochsShutdown(print)
    for writes, offset, size, value in accesses:
        for device in devices:
            if writes:
                device.write(offset, size, value & (1 << 8 * size) - 1)
            else:
                assert 0 <= device.read(offset, size) < 1 << 8 * size
            device.restore(device.save())


def test_the_exit_port_tells_a_status() -> None:
    told: list[int] = []
    DebugExit(told.append).write(0, 4, 0x10)
    assert told == [0x21]


def test_bochs_word_ends_a_machine() -> None:
    told: list[int] = []
    device = BochsShutdown(told.append)
    for letter in b"SShutdowShutdow":
        device.write(0, 1, letter)
    assert told == []
    device.write(0, 1, ord("n"))
    assert told == [0]


def test_lines_are_driven_at_changes() -> None:
    told: list[tuple[int, bool]] = []
    device = Lines(lambda line, level: told.append((line, level)))
    for line, value in ((5, 1), (5, 2), (5, 0), (23, 1), (4, 0)):
        device.write(line, 4, value)
    assert told == [(5, True), (5, False), (23, True)]


def test_flush_tells_the_page() -> None:
    told: list[int] = []
    Flush(told.append).write(0, 4, 0x12345)
    assert told == [0x12000]
