"""Filters that only prune has, beside those that lists have: ``until`` and ``label!``."""

from __future__ import annotations

import time

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Fits = Callable[[float, Mapping[str, str]], bool]

_AGO = r"(\d{1,9}(?:\.\d{1,9})?)([smhd])"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def split(filters: Mapping[str, Sequence[str]]) -> tuple[Fits, dict[str, Sequence[str]]]:
    """Whether something made at a time, with labels, may go; and the filters that are left."""
    moments = [moment(text) for text in filters.get("until", ())]
    unwanted = filters.get("label!", ())

    def fits(created: float, labels: Mapping[str, str]) -> bool:
        if unwanted and all(labelled(labels, text) for text in unwanted):
            return False
        return all(created < moment for moment in moments)

    return fits, {key: wanted for key, wanted in filters.items() if key not in ("until", "label!")}


def labelled(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether there is a label ``key`` or ``key=text``."""
    key, equals, text = wanted.partition("=")
    return key in labels and (not equals or labels[key] == text)


def moment(text: str) -> float:
    """A time: seconds since the epoch, a date or RFC 3339 time (here's zone unless it says), or so long ago: 1h30m."""
    import re
    from datetime import datetime

    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    if re.fullmatch(f"({_AGO})+", text, re.ASCII):
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_AGO, text, re.ASCII))
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        hint = "write 24h, 2026-01-31T12:00:00Z, or seconds since 1970"
        raise Invalid(f"{text!r} is not a time", hint=hint) from error
