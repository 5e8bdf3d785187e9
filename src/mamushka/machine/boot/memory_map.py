"""What of its physical memory a guest may use: the map that a PC's firmware calls e820.

RAM below 1 MiB ends before the ACPI tables. A pmem region is told as type 12: Linux makes /dev/pmemN of it with no
device at all (drivers/nvdimm/e820.c); equal neighbours merge, so regions are placed with a gap. Memory that belongs to
a device is not in the map, its device tells of it.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.machine.boot import layout
from mamushka.machine.memory import PMEM, RAM
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.machine.memory import Memory

# ACPI 6.5, table 15.4; 12 is what firmware used before ACPI knew of persistent memory, and what nd_e820 looks for.
USABLE, RESERVED, ACPI_DATA, PERSISTENT = 1, 2, 3, 12
# As many as Linux's zero page has room for; other ways of booting have more, but nobody has more regions.
STRETCHES_MAX = 128


@value
class Stretch:
    """Some bytes of physical memory, and what they are for."""

    start: int
    length: int
    kind: int


def memory_map(memory: Memory, extra: Iterable[Stretch] = ()) -> tuple[Stretch, ...]:
    """The whole map in order of addresses. Invalid where it is too long."""
    found = list(extra)
    for region in memory:
        if region.kind == PMEM:
            found.append(Stretch(region.start, region.length, PERSISTENT))
        elif region.kind == RAM and region.start == 0:
            found += _low(region.length)
        elif region.kind == RAM:
            found.append(Stretch(region.start, region.length, USABLE))
    if len(found) > STRETCHES_MAX:
        raise Invalid(
            f"the memory map has {len(found)} entries: the zero page holds {STRETCHES_MAX}",
            hint="give the machine fewer pmem ranges",
        )
    return tuple(sorted(found, key=lambda stretch: stretch.start))


def _low(end: int) -> list[Stretch]:
    """RAM from address zero, without what lies between 640 KiB and 1 MiB on a PC."""
    found = [Stretch(0, min(end, layout.LOW_END), USABLE)]
    if end >= layout.ACPI_END:
        found.append(Stretch(layout.ACPI, layout.ACPI_END - layout.ACPI, ACPI_DATA))
    if end > layout.HIGH:
        found.append(Stretch(layout.HIGH, end - layout.HIGH, USABLE))
    return found


def low_ram(memory: Memory) -> int:
    """Where RAM that begins at address zero ends; zero where there is none."""
    return next((region.end for region in memory if region.kind == RAM and region.start == 0), 0)
