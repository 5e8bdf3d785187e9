"""Ports by which a test program tests what is below it. QEMU, hw/misc/pc-testdev.c.

    0x2000 + n   what is written drives the interrupt line n: zero is low, all else is high
    0xe0         four bytes that keep what is written to them, for accesses of all sizes
    0xe4         the address of a page whose translation the monitor is to forget

Not for machines that are not meant for such programs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LINES_PORT, LINES = 0x2000, 24
SCRATCH_PORT, SCRATCH_LENGTH = 0xE0, 4  # for a PciAddress, which is as simple
FLUSH_PORT, FLUSH_LENGTH = 0xE4, 4


class Lines:
    """Drives interrupt lines: ``drive`` is called at each change, with the line and whether it rises."""

    def __init__(self, drive: Callable[[int, bool], None]) -> None:
        self._drive = drive
        self._high = [False] * LINES

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to be read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Set a line."""
        if self._high[offset] != bool(value):
            self._high[offset] = bool(value)
            self._drive(offset, bool(value))

    def save(self) -> dict[str, bytes]:
        """Which lines are high."""
        return {"high": bytes(self._high)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave; nothing is driven by that."""
        self._high = [bool(level) for level in state["high"][:LINES].ljust(LINES, b"\0")]


class Flush:
    """Calls ``forget`` with a page's address, where the executor keeps translations that could be stale."""

    def __init__(self, forget: Callable[[int], None] | None = None) -> None:
        self._forget = forget

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to be read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Forget a page."""
        if self._forget is not None:
            self._forget(value & ~0xFFF)

    def save(self) -> dict[str, bytes]:
        """It has no state."""
        return {}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Nothing to take."""
