"""What answers at an address: devices on the memory bus, and on the port bus of machines that have one."""

from __future__ import annotations

from mamushka import trace
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Registers(Protocol):
        """Something with registers. Offsets are relative to where it was attached; sizes are 1, 2, 4 or 8 bytes.

        Any offset and size below its length may come, aligned or not: what makes no sense reads as zero or is
        passed over, or raises GuestFault where the guest cannot go on.
        """

        def read(self, offset: int, size: int) -> int:
            """The register's value, of ``size`` bytes, little endian."""

        def write(self, offset: int, size: int, value: int) -> None:
            """Change it."""


@value
class Place:
    """Where a device stands."""

    start: int
    length: int
    registers: Registers
    name: str = ""


class Bus:
    """Addresses to registers. What nobody answers reads as all ones, as on a real bus, and is traced."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: tuple[Place, ...] = ()

    def attach(self, start: int, length: int, registers: Registers, name: str = "") -> None:
        """Let ``registers`` answer for [start, start+length); it must not overlap another's."""
        assert all(start + length <= other.start or other.start + other.length <= start for other in self.places), name
        self.places += (Place(start, length, registers, name),)

    def read(self, address: int, size: int) -> int:
        """What a read of ``size`` bytes gives."""
        for place in self.places:
            offset = address - place.start
            if 0 <= offset < place.length:
                return place.registers.read(offset, size) & (1 << 8 * size) - 1
        trace.event("bus.nobody", bus=self.name, address=address, size=size)
        return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """A write of ``size`` bytes."""
        for place in self.places:
            offset = address - place.start
            if 0 <= offset < place.length:
                place.registers.write(offset, size, value)
                return
        trace.event("bus.nobody", bus=self.name, address=address, size=size, value=value)
