"""The functions of templates (Go's builtins and Docker's own), on the values of JSON."""

from __future__ import annotations

from mamushka import document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# Wider columns than any terminal; a width is allocated, so it is bounded.
_WIDTH_MAX = 4096


def truth(item: object) -> bool:
    """Go's rule: zero, empty, false and nothing are false."""
    return bool(item)


def spelled(item: Any) -> str:
    """As Go's %v prints it."""
    if item is None:
        return "<no value>"
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, float):
        return _float(item)
    if isinstance(item, list | tuple):
        return "[" + " ".join(spelled(entry) for entry in item) + "]"
    if hasattr(item, "keys"):
        return "map[" + " ".join(f"{key}:{spelled(item[key])}" for key in sorted(item.keys())) + "]"
    return "<a method>" if callable(item) else str(item)


def _float(item: float) -> str:
    return str(int(item)) if item == int(item) and abs(item) < 1e21 else repr(item)


def _plain(item: Any) -> Any:
    """A copy of what templates see, with methods left out."""
    if hasattr(item, "keys"):
        return {key: _plain(item[key]) for key in item.keys() if not callable(item[key])}  # noqa: SIM118
    if isinstance(item, list | tuple):
        return [_plain(entry) for entry in item]
    return item


def to_json(item: object) -> str:
    """Compact JSON."""
    return document.dump(_plain(item)).decode()


def _index(item: Any, *keys: Any) -> Any:
    for key in keys:
        if hasattr(item, "keys"):
            item = item.get(key)
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(item):
            item = item[key]
        else:
            raise IndexError(f"there is no index {spelled(key)}")
    return item


def _slice(item: Any, first: int = 0, last: int | None = None) -> Any:
    last = len(item) if last is None else last
    if not 0 <= first <= last <= len(item):
        raise IndexError(f"there is no slice {first}:{last}")
    return item[first:last]


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TypeError("eq needs two arguments")
    return any(first == other for other in others)


def _and(first: Any, *others: Any) -> Any:
    for item in (first, *others):
        if not truth(item):
            return item
    return item


def _or(first: Any, *others: Any) -> Any:
    for item in (first, *others):
        if truth(item):
            return item
    return item


def _println(*items: Any) -> str:
    return " ".join(spelled(item) for item in items) + "\n"


def _print(*items: Any) -> str:
    """Spaces only between neighbours that are both no strings, as Go's fmt.Print."""
    result = ""
    for index, item in enumerate(items):
        if index and not isinstance(item, str) and not isinstance(items[index - 1], str):
            result += " "
        result += spelled(item)
    return result


def _printf(pattern: str, *items: Any) -> str:
    rest = iter(items)
    result = "".join(_formatted(piece, rest) for piece in _directives(pattern))
    extra = [spelled(item) for item in rest]
    return result + (f"%!(EXTRA {', '.join(extra)})" if extra else "")


def _directives(pattern: str) -> Iterator[str]:
    """Alternating text and directives such as "%-10s"."""
    index = 0
    while index < len(pattern):
        at = pattern.find("%", index)
        if at < 0:
            yield pattern[index:]
            return
        if at > index:
            yield pattern[index:at]
        end = at + 1
        while end < len(pattern) and pattern[end] in "+-# 0123456789.":
            end += 1
        yield pattern[at : end + 1]
        index = end + 1


def _formatted(piece: str, items: Iterator[Any]) -> str:
    if piece[0] != "%":
        return piece
    verb, flags = piece[-1], piece[1:-1]
    if verb == "%" and len(piece) > 1:
        return "%"
    for number in flags.replace(".", " ").replace("-", " ").replace("+", " ").split():
        if number.isdigit() and int(number[:6]) > _WIDTH_MAX:
            raise ValueError(f"a width of {number} is more than {_WIDTH_MAX}")
    try:
        item = next(items)
    except StopIteration:
        return f"%!{verb}(MISSING)"
    if verb in "sv":
        return f"%{flags}s" % spelled(item)
    if verb == "q":
        return f"%{flags}s" % to_json(item)
    if verb == "t":
        return spelled(bool(item))
    if verb in "dxXocefgG":
        return str(f"%{flags}{verb}" % item)
    raise ValueError(f"%{verb} is not supported")


def _pad(text: str, before: int, after: int) -> str:
    if not 0 <= before <= _WIDTH_MAX or not 0 <= after <= _WIDTH_MAX:
        raise ValueError(f"a padding of {max(before, after)} is more than {_WIDTH_MAX}")
    return " " * before + text + " " * after if text else text


def _truncate(text: str, length: int) -> str:
    return text[: max(0, length)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "index": _index,
    "slice": _slice,
    "len": len,
    "join": lambda items, separator: separator.join(spelled(item) for item in items),
    "split": lambda text, separator: text.split(separator),
    "upper": lambda text: spelled(text).upper(),
    "lower": lambda text: spelled(text).lower(),
    "title": lambda text: " ".join(word[:1].upper() + word[1:] for word in spelled(text).split(" ")),
    "pad": _pad,
    "truncate": _truncate,
    "print": _print,
    "println": _println,
    "printf": _printf,
    "eq": _equal,
    "ne": lambda left, right: left != right,
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
    "and": _and,
    "or": _or,
    "not": lambda item: not truth(item),
}
