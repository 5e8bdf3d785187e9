"""PCI's configuration ports with no bus behind them.

Machines here have no PCI, but Linux makes resources of the memory map's persistent ranges (e820 type 12, from which it
makes /dev/pmemN) only in its survey of PCI resources: arch/x86/kernel/e820.c, e820__reserve_resources_late(), called
by pcibios_init(), which returns early where no way to configure PCI was found. So there is a way: the address that was
written is read back, and every function of every bus is absent. With ``pci=conf1,noearly`` on the command line, and no
host bridge in the ACPI tables, Linux never looks for one; the price are a few port accesses at boot.
"""

from __future__ import annotations

__all__ = ["LENGTH", "PORT", "Configuration"]

# PCI Local Bus Specification 3.0, section 3.2.2.3.2: CONFIG_ADDRESS, then CONFIG_DATA.
PORT, LENGTH = 0xCF8, 8


class Configuration:
    """Configuration mechanism 1. Attach it to the ports at ``PORT``."""

    def __init__(self) -> None:
        self.address = 0

    def read(self, offset: int, size: int) -> int:
        """The address, which has 32 bits and no other width; all else is ones, as where nobody answers."""
        return self.address if offset == 0 and size == 4 else (1 << size * 8) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The address; data goes nowhere."""
        if offset == 0 and size == 4:
            self.address = value & 0xFFFF_FFFF
