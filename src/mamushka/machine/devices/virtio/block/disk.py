"""What the device needs of a disk: an image of any format fits that has these."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol
else:
    Protocol = object


class Disk(Protocol):
    """Offsets and lengths are bytes. Any call may raise OSError or MamushkaError: the request fails, the guest goes on.

    One thread uses it. Views are the guest's memory, which may change meanwhile.
    """

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""

    @property
    def writable(self) -> bool:
        """Whether anything but reading is allowed."""

    @property
    def granularity(self) -> int:
        """Bytes of the smallest aligned part that can be discarded."""

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views."""

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views; it lasts from the next ``flush`` on."""

    def flush(self) -> None:
        """Make what was written last."""

    def discard(self, offset: int, length: int) -> None:
        """A part is not needed any more."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let a part read as zeros; with ``unmap`` its space may be given back."""

    def close(self) -> None:
        """Flush, and give it back."""
