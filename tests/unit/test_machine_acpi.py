"""ACPI tables: Intel's compiler takes them apart without a complaint and puts the same bytes together again."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.machine.boot import acpi, aml, layout
from mamushka.machine.memory import Memory, Region

needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="needs iasl (package acpica-tools)")

BOARD = acpi.Board(
    processors=300,
    devices=tuple(acpi.Mmio(layout.VIRTIO_MMIO + 4096 * number, 4096, 5 + number % 19) for number in range(40)),
    button=23,
)


def tables(blob: bytes, base: int) -> dict[bytes, bytes]:
    """All tables by following the pointers, as a kernel does."""

    def at(address: int) -> bytes:
        offset = address - base
        (length,) = struct.unpack_from("<I", blob, offset + 4)
        return blob[offset : offset + length]

    assert blob[:8] == b"RSD PTR "
    (address,) = struct.unpack_from("<Q", blob, 24)
    root = at(address)
    found = [root, *(at(pointer) for (pointer,) in struct.iter_unpack("<Q", root[36:]))]
    fixed = next(table for table in found if table[:4] == b"FACP")
    found.append(at(struct.unpack_from("<Q", fixed, 140)[0]))
    return {table[:4]: table for table in found}


def test_every_checksum_is_right() -> None:
    blob = acpi.build(BOARD)
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0
    found = tables(blob, layout.ACPI)
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    assert all(sum(table) & 0xFF == 0 for table in found.values())


def test_they_are_written_where_the_answer_says() -> None:
    memory = Memory((Region(0, 1 << 20),))
    base = acpi.install(memory, BOARD)
    assert memory.read(base, 8) == b"RSD PTR "
    memory.close()


def test_too_many_devices_are_refused() -> None:
    memory = Memory((Region(0, 1 << 20),))
    with pytest.raises(Invalid, match="bytes"):
        acpi.install(memory, acpi.Board(devices=BOARD.devices * 100))
    with pytest.raises(Invalid, match="can be named"):
        acpi.build(acpi.Board(devices=BOARD.devices * 200))
    memory.close()


def iasl(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    ran = subprocess.run(
        ["iasl", *arguments], cwd=directory, capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@needs_iasl
@pytest.mark.parametrize("board", [BOARD, acpi.Board(), acpi.Board(serial=None)], ids=("full", "plain", "empty"))
def test_intels_compiler_makes_the_same_bytes_of_them(tmp_path: Path, board: acpi.Board) -> None:
    for signature, table in tables(acpi.build(board), layout.ACPI).items():
        name = signature.decode().lower()
        (tmp_path / f"{name}.dat").write_bytes(table)
        said = iasl(tmp_path, "-d", f"{name}.dat")
        assert not any(word in said for word in ("Error", "rror:", "arning", "ncorrect", "nvalid")), said
        # -f: go on after errors; -oa: what the compiler would make shorter stays as it was written.
        said = iasl(tmp_path, "-oa", "-p", f"{name}-again", f"{name}.dsl")
        assert "0 Errors" in said, said
        again = (tmp_path / f"{name}-again.aml").read_bytes()
        # The compiler writes its own name and version into bytes 28 to 36, and the checksum that goes with it.
        assert again[:9] + again[10:28] + again[36:] == table[:9] + table[10:28] + table[36:]


@needs_iasl
def test_what_it_reads_is_what_was_meant(tmp_path: Path) -> None:
    for signature, table in tables(acpi.build(BOARD), layout.ACPI).items():
        (tmp_path / f"{signature.decode()}.dat").write_bytes(table)
        iasl(tmp_path, "-d", f"{signature.decode()}.dat")
    fixed = (tmp_path / "FACP.dsl").read_text()
    for line in (
        "Hardware Reduced (V5) : 1", "8042 Present on ports 60/64 (V2) : 0", "VGA Not Present (V4) : 1",
        "CMOS RTC Not Present (V5) : 1", "Legacy Devices Supported (V2) : 0", "Reset Register Supported (V2) : 1",
    ):  # fmt: skip
        assert line in fixed, line
    assert fixed.count("Space ID : 01 [SystemIO]") >= 3
    devices = (tmp_path / "DSDT.dsl").read_text()
    assert devices.count('Name (_HID, "LNRO0005")') == 40
    assert devices.count("Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )") == 42
    assert 'EisaId ("PNP0501")' in devices
    assert "Notify (\\_SB.PWRB, 0x80)" in devices
    processors = (tmp_path / "APIC.dsl").read_text()
    assert processors.count("[Processor Local APIC]") == 255
    assert processors.count("[Processor Local x2APIC]") == 45


@given(st.integers(0, 300_000))
def test_a_packages_length_is_the_specifications(size: int) -> None:
    raw = aml.package_length(bytes(size))
    further = raw[0] >> 6
    length = raw[0] & 0x3F
    if further:
        assert not raw[0] & 0x30
        length = raw[0] & 0xF | int.from_bytes(raw[1 : 1 + further], "little") << 4
    assert length == len(raw) == size + 1 + further
