"""PCI's configuration ports, as Linux's pci_check_type1() asks them."""

from __future__ import annotations

from mamushka.machine.boot.command_line import command_line
from mamushka.machine.bus import Bus
from mamushka.machine.devices import pci


def test_the_mechanism_is_there_and_no_function_is() -> None:
    ports = Bus("port")
    ports.attach(pci.PORT, pci.LENGTH, pci.Configuration())
    ports.write(0xCFB, 1, 1)
    assert ports.read(0xCF8, 4) == 0
    ports.write(0xCF8, 4, 0x8000_0000)
    assert ports.read(0xCF8, 4) == 0x8000_0000
    assert ports.read(0xCFC, 4) == 0xFFFF_FFFF and ports.read(0xCFE, 2) == 0xFFFF
    ports.write(0xCF9, 1, 6)
    ports.write(0xCFC, 4, 0)
    assert ports.read(0xCF8, 4) == 0x8000_0000


def test_linux_is_told_to_use_it() -> None:
    words = command_line().split()
    assert b"pci=conf1,noearly" in words and b"pci=off" not in words
