"""A workload's log: Docker's json-file format, one JSON object a line."""

from __future__ import annotations

from mamushka.values import value


@value
class Line:
    """One piece of output as it was written; ``data`` keeps its newline."""

    time: float
    stamp: str  # RFC 3339 with nanoseconds, as in the file
    stream: str  # stdout | stderr
    data: bytes
