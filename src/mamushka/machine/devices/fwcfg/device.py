"""Numbered items that a guest reads byte by byte. QEMU, docs/specs/fw_cfg.rst.

A write of two bytes to the first port selects an item and begins at its first byte; each read of the second gives the
next one, and zeros behind the end. Items have fixed numbers, or names in a directory, which is item 0x19. There is no
DMA: the item 1 says so. Nothing can be written.
"""

from __future__ import annotations

import struct

from mamushka.errors import Invalid
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PORT, LENGTH = 0x510, 2

SIGNATURE, ID, RAM_SIZE, CPUS, MAX_CPUS, DIRECTORY, FILES = 0, 1, 3, 5, 0xF, 0x19, 0x20
KERNEL_SIZE, INITRD_SIZE, COMMAND_LINE_SIZE = 0x8, 0xB, 0x14
INITRD, COMMAND_LINE = 0x12, 0x15
# The two top bits of a number are flags (architecture's own; write); what is left counts the items.
_KEY = 0x3FFF
_ARCHITECTURE = 0x8000
_NAME_MAX = 55


class FwCfg:
    """Tells a guest its memory, its processors, and what its loader was given. Registers of a port bus."""

    def __init__(
        self,
        *,
        ram: int,
        processors: int,
        command_line: bytes = b"",
        initrd: bytes = b"",
        files: Mapping[str, bytes] = EMPTY,
    ) -> None:
        self._items: dict[int, bytes] = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", 1),  # the two ports alone
            RAM_SIZE: struct.pack("<Q", ram),
            CPUS: struct.pack("<H", processors),
            MAX_CPUS: struct.pack("<H", processors),
            KERNEL_SIZE: bytes(4),  # the kernel has been loaded already
            INITRD_SIZE: struct.pack("<I", len(initrd)),
            INITRD: initrd,
            COMMAND_LINE_SIZE: struct.pack("<I", len(command_line) + 1),
            COMMAND_LINE: command_line + b"\0",
            DIRECTORY: _directory(files),
        }
        self._items.update(enumerate((files[name] for name in sorted(files)), FILES))
        self._key, self._place = SIGNATURE, 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item; other writes were for changing items once and do nothing."""
        if offset == 0 and size == 2:
            self._key, self._place = value, 0

    def read(self, offset: int, size: int) -> int:
        """The next byte. Wider reads, which real ports have not, give the next bytes, the first one lowest."""
        item = b"" if self._key & _ARCHITECTURE else self._items.get(self._key & _KEY, b"")
        piece = item[self._place : self._place + size]
        self._place = min(self._place + size, len(item))  # so that a guest that reads on for years counts nothing
        return int.from_bytes(piece, "little")

    def save(self) -> dict[str, bytes]:
        """Which item is being read, and how far."""
        return {"selected": struct.pack("<HI", self._key, self._place)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave."""
        self._key, self._place = struct.unpack("<HI", state["selected"])


def _directory(files: Mapping[str, bytes]) -> bytes:
    """The files in order of their names; its numbers alone are big endian."""
    entries = [struct.pack(">I", len(files))]
    for number, name in enumerate(sorted(files), FILES):
        raw = name.encode()
        if len(raw) > _NAME_MAX or b"\0" in raw:
            raise Invalid(f"{name!r} is no name for a fw_cfg file: at most {_NAME_MAX} bytes without NUL")
        entries.append(struct.pack(">IHH56s", len(files[name]), number, 0, raw))
    if FILES + len(files) > _KEY:
        raise Invalid(f"{len(files)} fw_cfg files: {_KEY - FILES} can be numbered")
    return b"".join(entries)
