"""What a driver asks of a disk. VIRTIO 1.2, section 5.2.6.

A chain is a header of 16 bytes, data to write or room for what is read, and in the last byte of all the status. How it
is cut into buffers is the driver's affair (2.7.4). A chain without whole header or status has nowhere to tell of a
failure and is a GuestFault; anything else that is wrong is told by the status.
"""

from __future__ import annotations

from struct import Struct

from mamushka.errors import GuestFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.machine.devices.virtio.queue import Chain

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
SECTOR = 512
UNMAP = 1  # flag of a range

_HEADER = Struct("<IIQ")
_RANGE = Struct("<QII")


class Request:
    """One chain, taken apart. ``readable`` and ``writable`` are data alone; the room for the status stands apart."""

    __slots__ = ("kind", "readable", "room", "sector", "status", "writable")

    def __init__(self, chain: Chain) -> None:
        self.kind, _, self.sector = _HEADER.unpack(chain.take(_HEADER.size))
        self.readable = _behind(chain.readable, _HEADER.size)
        writable = [view for view in chain.writable if len(view)]
        if not writable:
            raise GuestFault("a request for a disk without room for its status")
        last = writable.pop()
        if len(last) > 1:
            writable.append(last[:-1])
        self.status, self.writable = last[-1:], writable
        self.room = sum(map(len, writable))

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(sector, sectors, flags) of what is to be discarded or zeroed."""
        return _RANGE.iter_unpack(b"".join(self.readable))


RANGE = _RANGE.size


def _behind(views: list[memoryview], skip: int) -> list[memoryview]:
    rest = []
    for view in views:
        if skip < len(view):
            rest.append(view[skip:] if skip else view)
        skip = max(0, skip - len(view))
    return rest
