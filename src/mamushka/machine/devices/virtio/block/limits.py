"""How much of a disk a guest gets in a second: a bucket for each limit, which fills steadily and may be overdrawn.

A request of any size is served when the bucket is not empty, and what it took beyond is waited for before the next.
So no request is too large for a limit, and on the average none is exceeded.
"""

from __future__ import annotations

from mamushka.values import value

# What a guest that was idle may take at once, as seconds of its limit: short enough that nobody else notices.
BURST = 0.1

READ, WRITE = "read", "write"


@value
class Limits:
    """Each for one second; zero is no limit. A discard counts as one write of no bytes."""

    read_bps: int = 0
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


class Bucket:
    """One limit. Times are those of one monotonic clock, in seconds."""

    __slots__ = ("_level", "_rate", "_then")

    def __init__(self, rate: int, now: float) -> None:
        self._rate, self._then = rate, now
        self._level = rate * BURST

    def delay(self, now: float) -> float:
        """Seconds until something may be taken; zero is now."""
        if not self._rate:
            return 0.0
        self._level = min(self._level + (now - self._then) * self._rate, self._rate * BURST)
        self._then = now
        return max(0.0, -self._level / self._rate)

    def take(self, amount: int) -> None:
        """What was taken."""
        self._level -= amount


class Throttle:
    """The buckets of one disk."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._bytes = {READ: Bucket(limits.read_bps, now), WRITE: Bucket(limits.write_bps, now)}
        self._operations = {READ: Bucket(limits.read_iops, now), WRITE: Bucket(limits.write_iops, now)}

    def delay(self, direction: str, now: float) -> float:
        """Seconds until a request may be served."""
        return max(self._bytes[direction].delay(now), self._operations[direction].delay(now))

    def take(self, direction: str, length: int) -> None:
        """One request was served."""
        self._bytes[direction].take(length)
        self._operations[direction].take(1)
