"""How a guest ends: the sleep and reset registers of hardware-reduced ACPI, as three ports.

ACPI 6.5, sections 4.8.3.6 and 4.8.3.7.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LENGTH", "RESET", "RESET_VALUE", "SLEEP_CONTROL", "SLEEP_STATUS", "SLEEP_TYPE_OFF", "Power"]

# Where the FADT says they are, from where the device is attached. One byte each.
SLEEP_CONTROL, SLEEP_STATUS, RESET, LENGTH = 0, 1, 2, 3
RESET_VALUE = 1
SLEEP_TYPE_OFF = 5  # what \_S5 in the DSDT says

_SLEEP_ENABLE, _TYPE_SHIFT, _TYPE_MASK = 0x20, 2, 7


class Power:
    """Tells ``ended`` with whether the guest wants to begin again. It is called in a virtual CPU's thread."""

    def __init__(self, ended: Callable[[bool], None]) -> None:
        self._ended = ended

    def read(self, offset: int, size: int) -> int:
        """Nothing is ever pending: no sleep but the last one."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A wider write begins at its first register, as on the port bus."""
        if offset == SLEEP_CONTROL and value & _SLEEP_ENABLE and value >> _TYPE_SHIFT & _TYPE_MASK == SLEEP_TYPE_OFF:
            self._ended(False)
        elif offset == RESET and value & 0xFF == RESET_VALUE:
            self._ended(True)
