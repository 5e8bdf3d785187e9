"""JSON documents as frozen values: what stands in a class's annotations is what a document may hold.

A ``Codec`` belongs to a module of ``@value`` classes. Their fields are annotated with ``str``, ``bool``, one of the
ranged integers below, another class of the module, ``tuple[X, ...]``, ``Mapping[str, X]``, or any of these
``| None``. Fields without a default are required; unknown keys are ignored; ``null`` is absence.
"""

from __future__ import annotations

from mamushka import document
from mamushka.errors import Invalid
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias, TypeVar

    T = TypeVar("T")
    uint16: TypeAlias = int
    uint32: TypeAlias = int
    uint64: TypeAlias = int
    int32: TypeAlias = int
    int64: TypeAlias = int

_RANGES = {
    "uint16": (0, (1 << 16) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint64": (0, (1 << 64) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
}
_REQUIRED = object()


class Codec:
    """Reads and writes the values of one module.

    ``scope`` is the module's namespace; ``names`` are the JSON names that are not the plain camelCase of ours;
    ``always`` are fields that are written even where they equal their default, because others require them.
    """

    def __init__(self, scope: Mapping[str, Any], names: Mapping[str, str], always: tuple[str, ...] = ()) -> None:
        self._scope = scope
        self._always = always
        self._names = names
        self._converters: dict[str, Callable[[Any], Any]] = {}

    def parse(self, kind: type[T], raw: bytes, what: str) -> T:
        """A document as a value; ``what`` names it in the error. Raises Invalid, never anything else."""
        return self.convert(kind, document.parse(raw, what), what)

    def convert(self, kind: type[T], item: object, what: str) -> T:
        """The same for a part of a document that is parsed already."""
        try:
            return self._converter(kind.__name__)(item)  # type: ignore[no-any-return]
        except _Wrong as wrong:
            where = ".".join(reversed(wrong.path))
            raise Invalid(f"{what}: {where or 'the document'} {wrong}") from None

    def dump(self, item: object) -> bytes:
        """A value as compact JSON; what equals its default is left out."""
        return document.dump(self.plain(item))

    def plain(self, item: Any) -> Any:
        """A value as dicts, lists and scalars; what equals its default is left out."""
        if hasattr(item, "__match_args__"):
            defaults = item._defaults
            return {
                self._json_name(name): self.plain(entry)
                for name in item.__match_args__
                if (entry := getattr(item, name)) != defaults.get(name, _REQUIRED) or name in self._always
            }
        if isinstance(item, tuple):
            return [self.plain(entry) for entry in item]
        if hasattr(item, "keys"):
            return {key: self.plain(item[key]) for key in item}
        return item

    def _json_name(self, name: str) -> str:
        if name in self._names:
            return self._names[name]
        head, *rest = name.split("_")
        return head + "".join(part.capitalize() for part in rest)

    def _converter(self, annotation: str) -> Callable[[Any], Any]:
        """What turns JSON into a field of this annotation; made once, on first use."""
        known = self._converters.get(annotation)
        if known is None:
            known = self._converters[annotation] = self._make_converter(annotation.removesuffix(" | None"))
        return known

    def _make_converter(self, annotation: str) -> Callable[[Any], Any]:
        if annotation == "str":
            return _string
        if annotation == "bool":
            return _boolean
        if annotation in _RANGES:
            return _integer(*_RANGES[annotation])
        if annotation.startswith("tuple["):
            return _sequence(self._converter(annotation[len("tuple[") : -len(", ...]")]))
        if annotation.startswith("Mapping["):
            return _mapping(self._converter(annotation[len("Mapping[str, ") : -1]))
        return self._object(self._scope[annotation])

    def _object(self, cls: Any) -> Callable[[Any], Any]:
        fields = [(name, self._json_name(name), self._converter(kind)) for name, kind in cls.__annotations__.items()]
        required = [name for name in cls.__match_args__ if name not in cls._defaults]

        def convert(item: Any) -> Any:
            if not isinstance(item, dict):
                raise _Wrong(f"must be an object, not {_kind(item)}")
            found: dict[str, Any] = {}
            key = ""
            try:
                for name, key, field in fields:
                    entry = item.get(key)
                    if entry is not None:
                        found[name] = field(entry)
            except _Wrong as wrong:
                wrong.path.append(key)
                raise
            for name in required:
                if name not in found:
                    raise _Wrong(f"misses the key {self._json_name(name)!r}")
            return cls(**found)

        return convert


class _Wrong(Exception):  # an Invalid that still collects the keys that lead to it, innermost first
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def _string(item: Any) -> str:
    if not isinstance(item, str):
        raise _Wrong(f"must be a string, not {_kind(item)}")
    if "\0" in item:
        raise _Wrong("contains a NUL character, which no kernel interface can take")
    if not item.isascii():
        try:  # undecodable bytes travel as lone low surrogates, as Python itself carries them
            item.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise _Wrong("contains half of a surrogate pair") from None
    return item


def _boolean(item: Any) -> bool:
    if item is not True and item is not False:
        raise _Wrong(f"must be true or false, not {_kind(item)}")
    return item


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def integer(item: Any) -> int:
        if type(item) is not int:
            raise _Wrong(f"must be an integer, not {_kind(item)}")
        if not low <= item <= high:
            raise _Wrong(f"is {item}, outside {low} to {high}")
        return item

    return integer


def _sequence(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def sequence(item: Any) -> tuple[Any, ...]:
        if not isinstance(item, list):
            raise _Wrong(f"must be a list, not {_kind(item)}")
        result: list[Any] = []
        try:
            for entry in item:
                result.append(convert(entry))
        except _Wrong as wrong:
            wrong.path.append(str(len(result)))
            raise
        return tuple(result)

    return sequence


def _mapping(convert: Callable[[Any], Any]) -> Callable[[Any], Mapping[str, Any]]:
    def mapping(item: Any) -> Mapping[str, Any]:
        if not isinstance(item, dict):
            raise _Wrong(f"must be an object, not {_kind(item)}")
        key = ""
        try:
            return {(key := _string(name)): convert(entry) for name, entry in item.items()} or EMPTY
        except _Wrong as wrong:
            wrong.path.append(key)
            raise

    return mapping


def _kind(item: object) -> str:
    """What was found instead; the document's own words, cut short."""
    if item is None:
        return "null"
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, int | float):
        return f"the number {item}"[:60]
    return "an object" if isinstance(item, dict) else "a list" if isinstance(item, list) else "a string"
