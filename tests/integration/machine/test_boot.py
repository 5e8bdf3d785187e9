"""Debian's kernel under our monitor, to its first process: by each way of booting, it finds what it was told of."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from mamushka.machine.boot import acpi, initramfs, kernels, layout, linux, load
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member
from mamushka.machine.devices import pci
from mamushka.machine.devices.power import LENGTH as POWER_LENGTH
from mamushka.machine.devices.power import Power
from mamushka.machine.devices.serial import Serial
from mamushka.machine.devices.virtio.mmio import Transport
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import OFF, REBOOT, End, Machine
from mamushka.machine.memory import PMEM, Memory, Region, shared_region
from tests.integration.machine import linux_guest
from tests.integration.machine.linux_guest import first_files, needs_linux

MIB = 1 << 20
RNGS = 3


pytestmark = needs_linux


@pytest.fixture(scope="module")
def stock() -> kernels.Kernel:
    return linux_guest.stock()


@pytest.fixture(scope="module")
def vmlinux(stock: kernels.Kernel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is compressed in the bzImage, unpacked."""
    if shutil.which("lz4") is None:
        pytest.skip("needs lz4")
    image = Path(stock.image).read_bytes()
    header = linux.parse(memoryview(image))
    offset, length = header.payload
    packed = image[header.setup + offset :][:length]
    # The kernel's build appends the unpacked size to an LZ4 stream.
    (size,) = struct.unpack("<I", packed[-4:])
    plain = subprocess.run(["lz4", "-d", "-c"], input=packed[:-4], capture_output=True, check=True).stdout
    assert len(plain) == size
    path = tmp_path_factory.mktemp("kernel") / "vmlinux"
    path.write_bytes(plain)
    return str(path)


def boot(
    image: str, stock: kernels.Kernel, script: str, modules: Sequence[str] = (), *, vcpus: int = 2
) -> tuple[str, End]:
    """What the console said, and how it ended. The script is busybox' shell's."""
    archives = first_files(stock, script, modules)
    archives.append(initramfs.archive([Member("etc/late", content=b"the last archive\n")]))
    memory = Memory((shared_region(0, 256 * MIB), Region(layout.PMEM, 32 * MIB, kind=PMEM)))
    machine = Machine(KvmExecutor(), memory, vcpus=vcpus)
    said, lock = bytearray(), threading.Lock()

    def listen(content: bytes) -> None:
        with lock:
            said.extend(content)

    serial = Serial(machine.executor.line(layout.SERIAL_GSI), machine.loop, listen)
    machine.ports.attach(layout.SERIAL, layout.SERIAL_SIZE, serial)
    machine.ports.attach(pci.PORT, pci.LENGTH, pci.Configuration())
    machine.ports.attach(layout.SLEEP_CONTROL, POWER_LENGTH, Power(machine.power))
    transports, devices = [], []
    for number in range(RNGS):
        place = acpi.Mmio(layout.VIRTIO_MMIO + number * 4096, 4096, layout.VIRTIO_GSI + number)
        transport = Transport(Rng(), memory, machine.executor.line(place.gsi), machine.loop)
        transport.attach(place.address, machine.bus, machine.executor)
        devices.append(place)
        transports.append(transport)
    rsdp = acpi.install(memory, acpi.Board(vcpus, tuple(devices), button=layout.VIRTIO_GSI + RNGS))
    line = command_line()
    try:
        machine.start(load(memory, image, command_line=line, initramfs=archives, rsdp=rsdp))
        end = machine.wait(120)
        with lock:
            text = said.decode(errors="replace")
        assert end is not None, text[-3000:]
        return text, end
    finally:
        machine.finish(End(OFF, "the test is over"))
        machine.wait()
        for transport in transports:
            transport.close()
        serial.close()
        machine.close()


LOOK = """
echo processors $(nproc)
cat /etc/late
echo line $(cat /proc/cmdline)
grep -i "persistent\\|ACPI Tables\\|System RAM" /proc/iomem
ls /sys/bus/virtio/devices /dev 2>/dev/null
for device in /sys/bus/acpi/devices/LNRO0005*; do echo $(basename $device) $(cat $device/uid); done
for table in DSDT FACP APIC; do test -s /sys/firmware/acpi/tables/$table && echo has $table; done
ls -l /dev/pmem0; wc -c < /dev/pmem0
grep -i virtio /proc/interrupts
echo complaints $(dmesg | grep -i "ACPI.*error\\|ACPI.*warning\\|firmware bug") none
poweroff -f
"""
MODULES = ("virtio_mmio", "virtio_rng", "nd_e820", "nd_pmem")


@pytest.mark.parametrize("way", ["bzImage", "PVH"])
def test_it_finds_what_it_was_told_of_and_switches_off(
    way: str, stock: kernels.Kernel, request: pytest.FixtureRequest
) -> None:
    image = stock.image if way == "bzImage" else request.getfixturevalue("vmlinux")
    said, end = boot(image, stock, LOOK, MODULES)
    print(said)
    assert end.kind == OFF
    for line in ("processors 2", "the last archive", "line console=ttyS0", "has DSDT", "has FACP", "has APIC"):
        assert line in said, line
    assert f"{32 * MIB}" in said
    assert "4000000000-4001ffffff : Persistent Memory (legacy)" in said
    for number in range(RNGS):
        assert f"LNRO0005:0{number} {number}" in said
    assert "complaints none" in said


def test_it_begins_anew_by_a_triple_fault(stock: kernels.Kernel) -> None:
    _, end = boot(stock.image, stock, "reboot -f", vcpus=1)
    assert end.kind == REBOOT
