"""A blob's bytes in order, from wherever they can be had: resumed when a connection breaks, in parallel
ranges when one connection is slow.

What is yielded is always the next part of the blob, so a partial file stays a prefix and unpacking can go on
while downloading. The digest is verified by whoever stores the blob (image/ingest.py).
"""

from __future__ import annotations

import time

from mamushka import trace
from mamushka.errors import Invalid, Unavailable
from mamushka.spec import distribution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.image.http import Response
    from mamushka.image.registry import Registry
    from mamushka.spec.digest import Digest

# One connection that brings less than this a second, after so many seconds of waiting for it, gets company.
SLOW = 48 << 20
PATIENT_SECONDS = 1.0
# Parallel ranges: this many at once, of this size; their product is the memory that a layer may take.
LANES = 4
SEGMENT = 4 << 20
# Any progress renews the patience, but no blob may break off more often than this in all.
_BREAKS_MAX = 100


class Download:
    """One blob from one registry; iterate ``pieces(offset)``."""

    def __init__(self, registry: Registry, repository: str, digest: Digest, size: int) -> None:
        self._registry, self._repository = registry, repository
        self._digest, self._size = digest, size

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        """The bytes from ``offset`` to the end. Unavailable when no more can be had, Invalid for wrong ranges."""
        failures = breaks = 0
        while offset < self._size:
            before = offset
            try:
                for piece in self._connection(offset):
                    offset += len(piece)
                    yield piece
            except Unavailable as error:
                breaks += 1
                failures = 0 if offset > before else failures + 1
                if failures >= self._registry.patience.attempts or breaks > _BREAKS_MAX:
                    raise
                trace.event("blob.resume", digest=self._digest, offset=offset, reason=str(error))
                self._registry.patience.wait(failures)

    def _connection(self, offset: int) -> Iterator[bytes]:
        """What one connection brings, then parallel ones if it is slow and allows ranges."""
        with self._open(offset) as answer:
            ranges = answer.status == 206 or answer.header("Accept-Ranges") == "bytes"
            waited, got, asked = 0.0, 0, time.monotonic()
            for piece in _from(answer.pieces(), offset if answer.status == 200 else 0):
                waited += time.monotonic() - asked
                got += len(piece)
                if offset + got > self._size:
                    raise Invalid(f"{self._registry.host} sends more than the {self._size} bytes of {self._digest}")
                yield piece
                if (
                    waited > PATIENT_SECONDS
                    and got < SLOW * waited
                    and ranges
                    and self._size - offset - got > 2 * SEGMENT
                ):
                    break
                asked = time.monotonic()
        if offset + got < self._size:
            yield from self._lanes(offset + got)

    def _open(self, first: int, last: int = -1) -> Response:
        answer = self._registry.open_blob(self._repository, self._digest, first, last)
        if answer.status == 206:
            begin, end, total = distribution.content_range(answer.header("Content-Range"))
            if begin != first or total not in (-1, self._size) or (last >= 0 and end != last):
                answer.close()
                raise Invalid(
                    f"{self._registry.host} answers range {begin}-{end}/{total} for {first}-{last}/{self._size}"
                )
        elif 0 <= answer.length != self._size:
            answer.close()
            raise Invalid(
                f"{self._registry.host} has {answer.length} bytes for {self._digest}, the manifest says {self._size}"
            )
        return answer

    def _lanes(self, offset: int) -> Iterator[bytes]:
        """The rest in segments, several at once, given out in order."""
        from collections import deque
        from concurrent.futures import ThreadPoolExecutor
        from itertools import islice

        trace.event("blob.parallel", digest=self._digest, offset=offset, lanes=LANES)
        starts = iter(range(offset, self._size, SEGMENT))
        with ThreadPoolExecutor(LANES, "mamushka-range") as pool:
            under_way = deque(pool.submit(self._segment, start) for start in islice(starts, LANES))
            try:
                while under_way:
                    segment = under_way.popleft().result()
                    start = next(starts, None)
                    if start is not None:
                        under_way.append(pool.submit(self._segment, start))
                    yield segment
            finally:
                for future in under_way:
                    future.cancel()

    def _segment(self, first: int) -> bytes:
        last = min(first + SEGMENT, self._size) - 1
        for attempt in range(self._registry.patience.attempts):
            try:
                with self._open(first, last) as answer:
                    if answer.status != 206:
                        raise Unavailable(f"{self._registry.host} no longer answers ranges")
                    return answer.read(last + 1 - first, f"a range of {self._digest}")
            except Unavailable:
                if attempt + 1 == self._registry.patience.attempts:
                    raise
                self._registry.patience.wait(attempt)
        raise AssertionError("the last attempt returns or raises")


def _from(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Without the first ``skip`` bytes, for a server that sends everything again."""
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
