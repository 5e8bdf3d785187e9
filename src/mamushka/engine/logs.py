"""A workload's log: Docker's json-file format, one JSON object a line.

Bytes that are not UTF-8 are written as lone surrogates (``\\udc80``), so that reading gives back what was written;
Docker's own tools show U+FFFD for them.
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.errors import Invalid
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Docker cuts longer lines into pieces of this size, each an object of its own.
LINE_MAX = 16384
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30}


@value
class Line:
    """One piece of output as it was written; ``data`` keeps its newline."""

    time: float
    stamp: str  # RFC 3339 with nanoseconds, as in the file
    stream: str  # stdout | stderr
    data: bytes


@value
class LogOptions:
    """max-size (bytes, 0: no bound) and max-file."""

    size_max: int = 0
    files: int = 1


def options(driver: str, given: Mapping[str, str]) -> LogOptions | None:
    """What --log-driver and --log-opt ask for; None for no log at all. Invalid for what is not json-file."""
    if driver == "none":
        return None
    if driver not in ("", "json-file"):
        raise Invalid(f"unknown log driver {driver!r}", hint="json-file and none are there")
    unknown = set(given) - {"max-size", "max-file"}
    if unknown:
        raise Invalid(f"unknown log opt {min(unknown)!r} for json-file log driver", hint="max-size and max-file")
    files = given.get("max-file", "1")
    if not files.isdecimal() or not 1 <= int(files) <= 1000:
        raise Invalid(f"invalid log opt max-file={files!r}", hint="a number from 1 to 1000")
    return LogOptions(_size(given.get("max-size", "0")), int(files))


def _size(text: str) -> int:
    digits = text.rstrip("bBkKmMgG")
    unit = _UNITS.get(text[len(digits) :].lower())
    if unit is None or not digits.isdecimal() or len(digits) > 12:
        raise Invalid(f"invalid log opt max-size={text!r}", hint="a number with k, m or g: 10m")
    return int(digits) * unit


class LogFile:
    """The writing side. Unfinished lines are kept until their end comes, they are long enough, or ``close``."""

    def __init__(self, path: str, bounds: LogOptions) -> None:
        self._path = path
        self._bounds = bounds
        self._partial = {"stdout": b"", "stderr": b""}
        self._second = -1
        self._prefix = ""
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    @property
    def idle(self) -> bool:
        """Whether no unfinished line is kept."""
        return not any(self._partial.values())

    def write(self, stream: str, data: bytes, nanoseconds: int) -> None:
        """Append output that came at this time since the epoch."""
        *whole, rest = (self._partial[stream] + data).split(b"\n")
        lines = [part for line in whole for part in _cut(line + b"\n")]
        *full, rest = [*_cut(rest)] or [b""]
        if len(rest) == LINE_MAX:
            full, rest = [*full, rest], b""
        self._partial[stream] = rest
        self._append(stream, lines + full, nanoseconds)

    def flush(self, nanoseconds: int) -> None:
        """Write unfinished lines as they are."""
        for stream, rest in self._partial.items():
            if rest:
                self._partial[stream] = b""
                self._append(stream, [rest], nanoseconds)

    def close(self) -> None:
        """Close the file; ``flush`` comes before."""
        os.close(self._fd)

    def _append(self, stream: str, lines: list[bytes], nanoseconds: int) -> None:
        if not lines:
            return
        stamp = self._stamp(nanoseconds)
        encode = document.quote
        tail = f',"stream":"{stream}","time":"{stamp}"}}\n'
        text = "".join(f'{{"log":{encode(line.decode("utf-8", "surrogateescape"))}{tail}' for line in lines)
        record = text.encode("ascii")
        if self._bounds.size_max and self._size and self._size + len(record) > self._bounds.size_max:
            self._rotate()
        try:
            os.write(self._fd, record)
        except OSError:
            return  # the disk is full: the workload goes on without its log, as it does under Docker
        self._size += len(record)

    def _stamp(self, nanoseconds: int) -> str:
        second, rest = divmod(nanoseconds, 1_000_000_000)
        if second != self._second:
            self._second, self._prefix = second, _utc(second)
        return f"{self._prefix}.{rest:09d}Z"

    def _rotate(self) -> None:
        os.close(self._fd)
        if self._bounds.files == 1:
            os.truncate(self._path, 0)
        for index in range(self._bounds.files - 1, 0, -1):
            older = f"{self._path}.{index - 1}" if index > 1 else self._path
            if os.path.exists(older):
                os.rename(older, f"{self._path}.{index}")
        self._open()


def _cut(line: bytes) -> Iterator[bytes]:
    for start in range(0, len(line), LINE_MAX):
        yield line[start : start + LINE_MAX]


def _utc(second: int) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _parse(raw: bytes) -> Line | None:
    """A line of the file; None for one that a full disk or a power cut left unreadable."""
    try:
        entry = document.parse(raw, "a log line")
        stamp = entry["time"]
        return Line(timestamp(stamp), stamp, entry["stream"], entry["log"].encode("utf-8", "surrogateescape"))
    except (Invalid, KeyError, TypeError, ValueError, AttributeError):
        return None


def timestamp(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 stamp in UTC."""
    import calendar

    fields = (stamp[:4], stamp[5:7], stamp[8:10], stamp[11:13], stamp[14:16], stamp[17:19])
    seconds = calendar.timegm(tuple(map(int, fields)))
    fraction = stamp[19:].rstrip("Z")
    return seconds + (float(f"0{fraction}") if fraction else 0.0)


def _files(path: str) -> list[str]:
    """The log's files, oldest first."""
    index = 1
    while os.path.exists(f"{path}.{index}"):
        index += 1
    return [f"{path}.{number}" for number in range(index - 1, 0, -1)] + [path]


class Reader:
    """The lines that are there, and on the next call those that came since; rotation is followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def history(self) -> Iterator[Line]:
        """Rotated files, then the present one."""
        for older in _files(self._path)[:-1]:
            reader = Reader(older)
            yield from reader.lines()
            reader.close()
        yield from self.lines()

    def lines(self) -> Iterator[Line]:
        """What is there and was not read yet."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        yield from self._read()
        if self._replaced():
            self.close()
            yield from self.lines()

    def _read(self) -> Iterator[Line]:
        if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)  # truncated: a log of one file was full
        while chunk := os.read(self._fd, 1 << 18):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for raw in lines:
                line = _parse(raw)
                if line is not None:
                    yield line

    def _replaced(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False


def choose(lines: Iterator[Line], wanted: Callable[[Line], bool], tail: int) -> Iterator[Line]:
    """Of the lines that are wanted, the last ``tail``; all where it is negative."""
    from collections import deque

    chosen = (line for line in lines if wanted(line))
    return chosen if tail < 0 else iter(deque(chosen, maxlen=tail))
