"""PCI's address register, with no bus behind it: what Linux takes as the proof that there is PCI.

Linux tells its drivers of pmem ranges in the memory map when it surveys PCI's resources, and does so only where it
finds a way to PCI's configuration (arch/x86/kernel/e820.c, e820__reserve_resources_late; arch/x86/pci/common.c,
pcibios_init). The way is there as soon as the register of configuration mechanism 1 keeps what is written to it, and
the kernel was told not to look for a bridge: ``pci=conf1,noearly``. There is no bus in the ACPI tables, so none is
scanned; what is behind the register, at 0xcfc, nobody answers for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LENGTH", "PORT", "PciAddress"]

PORT, LENGTH = 0xCF8, 4


class PciAddress:
    """Keeps four bytes; they can be read and written in all sizes."""

    def __init__(self) -> None:
        self._bytes = bytearray(LENGTH)

    def read(self, offset: int, size: int) -> int:
        """What was written there; bytes beyond the fourth are zero."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it, as far as it fits."""
        end = min(offset + size, LENGTH)
        self._bytes[offset:end] = value.to_bytes(size, "little")[: end - offset]

    def save(self) -> dict[str, bytes]:
        """The bytes."""
        return {"bytes": bytes(self._bytes)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave."""
        self._bytes[:] = state["bytes"][:LENGTH].ljust(LENGTH, b"\0")
