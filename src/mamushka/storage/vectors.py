"""Reading and writing at offsets into many pieces of memory at once, whole: the kernel's short counts end here."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

IOV_MAX = 1024  # what one call takes; include/uapi/linux/uio.h, UIO_MAXIOV
_ZEROS = memoryview(bytes(1 << 20))


def length(views: Sequence[memoryview]) -> int:
    """Bytes in all of them."""
    return sum(map(len, views))


class Pieces:
    """Views taken from the front, as many bytes at a time as are wanted; nothing is copied."""

    __slots__ = ("_index", "_skip", "_views", "left")

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views, self._index, self._skip = views, 0, 0
        self.left = length(views)

    def take(self, count: int) -> list[memoryview]:
        """The next ``count`` bytes, of which there must be so many."""
        assert 0 <= count <= self.left, (count, self.left)
        self.left -= count
        taken: list[memoryview] = []
        while count:
            view = self._views[self._index]
            part = view[self._skip : self._skip + count] if self._skip or count < len(view) else view
            self._skip += len(part)
            if self._skip == len(view):
                self._index, self._skip = self._index + 1, 0
            count -= len(part)
            if len(part):
                taken.append(part)
        return taken


def zero(views: Sequence[memoryview]) -> None:
    """Fill with zeros."""
    for view in views:
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            part[:] = _ZEROS[: len(part)]


def scatter(data: memoryview, views: Sequence[memoryview]) -> None:
    """Copy ``data``, which is as long as the views together, into them."""
    for view in views:
        view[:] = data[: len(view)]
        data = data[len(view) :]


def read_at(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Fill the views from a file; what lies behind its end are zeros."""
    pieces = Pieces(views)
    if len(views) <= IOV_MAX and os.preadv(fd, views, offset) == pieces.left:  # nearly always
        return
    while pieces.left:
        before = pieces.left
        part = pieces.take(min(before, 1 << 20))
        for start in range(0, len(part), IOV_MAX):
            _read_part(fd, part[start : start + IOV_MAX], offset)
            offset += length(part[start : start + IOV_MAX])


def _read_part(fd: int, views: list[memoryview], offset: int) -> None:
    done = 0
    total = length(views)
    while done < total:
        rest = Pieces(views)
        rest.take(done)
        count = os.preadv(fd, rest.take(total - done), offset + done)
        if count == 0:
            rest = Pieces(views)
            rest.take(done)
            return zero(rest.take(total - done))
        done += count
    return None


def write_at(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write all of the views to a file."""
    total = length(views)
    done = os.pwritev(fd, views, offset) if len(views) <= IOV_MAX else 0
    while done < total:
        rest = Pieces(views)
        rest.take(done)
        done += os.pwritev(fd, rest.take(total - done)[:IOV_MAX], offset + done)


def write_zeros(fd: int, offset: int, count: int) -> None:
    """Write zeros, for file systems that cannot make holes."""
    while count:
        part = _ZEROS[: min(count, len(_ZEROS))]
        write_at(fd, (part,), offset)
        offset, count = offset + len(part), count - len(part)
