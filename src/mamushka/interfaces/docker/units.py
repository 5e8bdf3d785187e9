"""Sizes, durations and moments as Docker writes and reads them (go-units, Go's time package)."""

from __future__ import annotations

import time

from mamushka.errors import Invalid

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_POWERS = {"": 0, "b": 0} | {unit + end: power for power, unit in enumerate("kmgtp", 1) for end in ("", "b", "ib")}
# More than any machine's memory or disk; beyond it the kernel's signed 64-bit counters overflow.
SIZE_MAX = (1 << 63) - 1
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Go's durations are 63 bits of nanoseconds.
_DURATION_MAX = SIZE_MAX / 1e9


def size(text: str) -> int:
    """Bytes from "512", "64k", "1.5g", "20MB", "1 GiB"; every unit is a power of 1024, as for docker run."""
    low = text.strip().lower()
    number = low.rstrip("kmgtpib")
    try:
        result = int(_decimal(number.strip()) * 1024 ** _POWERS[low[len(number) :]])
    except (KeyError, ValueError, OverflowError) as error:
        raise Invalid("not a size", hint="write bytes, or a number with k, m, g or t: 512m, 1.5g") from error
    if result > SIZE_MAX:
        raise Invalid(f"more than {SIZE_MAX} bytes")
    return result


def size_or_unlimited(text: str) -> int:
    """A size, or -1 for no limit."""
    return -1 if text.strip() == "-1" else size(text)


def _decimal(text: str) -> float | int:
    """A non-negative number of digits and at most one dot; what float() takes beyond that is refused."""
    if not text or not text.isascii() or text.strip("0123456789.") or text.count(".") > 1 or text == ".":
        raise ValueError(text)
    return float(text) if "." in text else int(text[:40])


def number(text: str) -> float:
    """A non-negative decimal such as "1.5"."""
    try:
        return float(_decimal(text))
    except ValueError as error:
        raise Invalid("not a number") from error


def integer(text: str) -> int:
    """A whole number; negative ones are allowed."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    # Nothing that the kernel takes has more than 20 digits; int() of many digits is slow.
    if not digits.isascii() or not digits.isdigit() or len(digits) > 20:
        raise Invalid("not a whole number")
    return int(text)


def natural(text: str) -> int:
    """A whole number from zero up."""
    result = integer(text)
    if result < 0:
        raise Invalid("less than zero")
    return result


def duration(text: str) -> float:
    """Seconds from Go's spelling: "300ms", "1m30s", "2h"; a bare 0 needs no unit."""
    if text == "0":
        return 0.0
    total, rest = 0.0, text
    while rest:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(digits) :]
        unit = rest[: len(rest) - len(rest.lstrip("nuµmsh"))]
        # "1m30s" splits at digits; "1ms" is one unit and never "1m" and "s".
        rest = rest[len(unit) :]
        try:
            total += _decimal(digits) * _SECONDS[unit]
        except (ValueError, KeyError, OverflowError) as error:
            raise _bad_duration() from error
    if not text or total > _DURATION_MAX:
        raise _bad_duration()
    return total


def _bad_duration() -> Invalid:
    return Invalid("not a duration", hint="write a number with ns, us, ms, s, m or h: 300ms, 1m30s")


def moment(text: str, now: float | None = None) -> float:
    """Seconds since the epoch from a Unix time, RFC 3339 or a part of it, or a duration before now."""
    if not text:
        return 0.0
    if not text.strip("0123456789."):
        return number(text)
    if "-" not in text[1:]:
        return (time.time() if now is None else now) - duration(text)
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise Invalid(
            f"{text!r} is not a moment", hint="write 2026-11-22T20:15:00Z, a Unix time, or a duration such as 10m"
        ) from error


def _scaled(amount: float, base: float, names: tuple[str, ...], digits: int) -> str:
    step = 0
    while amount >= base and step < len(names) - 1:
        amount /= base
        step += 1
    return f"{amount:.{digits}g}{names[step]}"


def human_size(amount: float) -> str:
    """Powers of 1000 with three digits, as ``docker images`` shows: "7.05MB"."""
    return _scaled(float(amount), 1000.0, _DECIMAL, 3)


def human_bytes(amount: float) -> str:
    """Powers of 1024 with four digits, as ``docker stats`` shows: "1.945GiB"."""
    return _scaled(float(amount), 1024.0, _BINARY, 4)


def human_duration(seconds: float) -> str:
    """About how long, in words: "Less than a second", "About a minute", "3 hours"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, divisor, word in ((48, 1, "hours"), (24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks")):
        if hours < limit:
            return f"{hours // divisor} {word}"
    if hours < 24 * 365 * 2:
        return f"{hours // (24 * 30)} months"
    return f"{hours // (24 * 365)} years"


def ago(when: float, now: float | None = None) -> str:
    """How long it is since a moment: "2 hours ago"."""
    return human_duration(max(0.0, (time.time() if now is None else now) - when)) + " ago"


def rfc3339(when: float) -> str:
    """UTC with nanoseconds as the API gives it; Go's zero time where it has not happened."""
    if not when:
        return "0001-01-01T00:00:00Z"
    nanoseconds = round(when * 1e6) * 1000  # a float holds microseconds of today's dates, no more
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def local_time(when: float) -> str:
    """As ``docker ps`` prints CreatedAt: "2026-11-22 20:15:00 +0000 UTC"."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(when))
