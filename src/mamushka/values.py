"""Frozen, slotted values without the start-up price of ``dataclasses``.

``@value`` reads a class's annotations as fields, like ``@dataclass(frozen=True, slots=True)``, and type
checkers see it as just that. ``dataclasses`` costs 15-20 ms to import (it pulls in ``inspect``) and
compiles source for every class; the start of a container is budgeted in single milliseconds. See
docs/decisions/0002-values.md.

``value`` makes the class anew. Where modules are compiled ahead (startup.py) the first one is left out, which is half
of the price: there ``value.of`` is the class's metaclass.

Defaults must be immutable: ``()`` for a sequence, ``EMPTY`` for a mapping. A class may define
``__post_init__`` to check what it was given.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


# types.MappingProxyType, without the import of types in front of every command.
_ReadOnly: Any = type(type.__dict__)
EMPTY: Mapping[str, Any] = _ReadOnly({})
_MUTABLE = (list, dict, set, bytearray)


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    cls = type(self)
    names = cls.__match_args__
    fields = {**cls._defaults, **kwargs}
    if args:
        _place(cls, fields, args, kwargs)
    put = object.__setattr__
    try:
        for name in names:
            put(self, name, fields[name])
    except KeyError as missing:
        raise TypeError(f"{cls.__name__} misses the field {missing}") from None
    if len(fields) != len(names):
        unknown = next(name for name in fields if name not in names)
        raise TypeError(f"{cls.__name__} has no field {unknown!r}")
    check = getattr(self, "__post_init__", None)
    if check is not None:
        check()


def _place(cls: Any, fields: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = cls.__match_args__
    if len(args) > len(names):
        raise TypeError(f"{cls.__name__} takes {len(names)} fields, {len(args)} were given")
    for name, item in zip(names, args, strict=False):
        if name in kwargs:
            raise TypeError(f"{cls.__name__}: the field {name!r} was given twice")
        fields[name] = item


def _repr(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{type(self).__name__}({fields})"


def _items(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__match_args__)


def _eq(self: Any, other: object) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    return _items(self) == _items(other)


def _hash(self: Any) -> int:
    return hash((type(self), _items(self)))


def _frozen(self: Any, name: str, _item: object = None) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: it is a value")


def _reduce(self: Any) -> tuple[Any, ...]:
    return type(self), _items(self)


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Turn a class of annotated fields into a frozen, slotted, comparable, hashable value."""
    made: type[T] = _of(cls.__name__, cls.__bases__, dict(cls.__dict__))
    return made


def _of(name: str, bases: tuple[type, ...], given: dict[str, Any]) -> Any:
    """The value that a class statement describes."""
    names = tuple(field for field, kind in given.get("__annotations__", {}).items() if "ClassVar" not in str(kind))
    body = {key: item for key, item in given.items() if key not in ("__dict__", "__weakref__")}
    defaults = {field: body.pop(field) for field in names if field in body}
    for field, default in defaults.items():
        if isinstance(default, _MUTABLE):
            raise TypeError(f"{name}.{field} has a mutable default")
    body.update(
        __slots__=names,
        __match_args__=names,
        _defaults=defaults,
        __init__=_init,
        __setattr__=_frozen,
        __delattr__=_frozen,
        __reduce__=_reduce,
    )
    body.setdefault("__repr__", _repr)
    if "__eq__" not in given:
        body["__eq__"] = _eq
        body["__hash__"] = given.get("__hash__") or _hash
    return type(bases[0] if bases else object)(name, bases, body)


vars(value)["of"] = _of


def replace(self: T, **changes: Any) -> T:
    """A copy with some fields changed."""
    fields = {name: getattr(self, name) for name in type(self).__match_args__}  # type: ignore[attr-defined]
    fields.update(changes)
    return type(self)(**fields)


def asdict(self: object) -> dict[str, Any]:
    """The fields by name, one level deep."""
    return {name: getattr(self, name) for name in type(self).__match_args__}  # type: ignore[attr-defined]
