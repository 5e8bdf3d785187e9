"""Values of ``@value`` classes as JSON documents and back; fields at their default are left out.

Which class stands in a field is read from the annotation, whose names are looked up in the module of the
class: ``tuple[Mount, ...]``, ``Restart``, ``Health | None``. Mappings stay mappings.
"""

from __future__ import annotations

import sys

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

_classes: dict[type, dict[str, Any]] = {}


def encode(item: Any) -> Any:
    """What document.dump takes."""
    if isinstance(item, tuple):
        return [encode(entry) for entry in item]
    if not hasattr(item, "__match_args__"):
        return item
    defaults = type(item)._defaults
    fields = ((name, getattr(item, name)) for name in item.__match_args__)
    return {name: encode(field) for name, field in fields if name not in defaults or defaults[name] != field}


def decode(cls: type[T], document: Any) -> T:
    """The value that ``encode`` made the document from; Invalid for any other document."""
    if not isinstance(document, dict):
        raise Invalid(f"a {cls.__name__} is an object, not {type(document).__name__}")
    nested = _nested(cls)
    known: tuple[str, ...] = cls.__match_args__  # type: ignore[attr-defined]
    try:
        # A field that this version does not know comes from a newer one; it cannot be honoured, so it is dropped.
        return cls(**{name: _field(nested.get(name), document[name]) for name in known if name in document})
    except TypeError as error:
        raise Invalid(f"a {cls.__name__} cannot be read: {error}") from error


def _field(cls: Any, item: Any) -> Any:
    if isinstance(item, list):
        return tuple(_field(cls, entry) for entry in item)
    return decode(cls, item) if cls is not None and isinstance(item, dict) else item


def _nested(cls: type) -> dict[str, Any]:
    """The value classes that stand in a class's fields."""
    if cls not in _classes:
        scope = vars(sys.modules[cls.__module__])
        kinds = ((name, scope.get(_bare(str(kind)))) for name, kind in cls.__annotations__.items())
        _classes[cls] = {name: kind for name, kind in kinds if hasattr(kind, "__match_args__")}
    return _classes[cls]


def _bare(annotation: str) -> str:
    return annotation.removeprefix("tuple[").removesuffix(" | None").removesuffix(", ...]")
