"""C types and functions: the C half of the standard library's ctypes, under the same names.

Its Python half imports ``struct`` and defines dozens of types and classes that nothing here uses: 3 ms in front of
every container. What is here behaves as its namesake in ctypes does, and mixes with it.
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    Structure,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    dlsym,
    get_errno,
    sizeof,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Library", "Structure", "addressof", "byref", "c_char", "c_char_p", "c_int", "c_int8", "c_int16", "c_int32",
    "c_int64", "c_long", "c_size_t", "c_ubyte", "c_uint8", "c_uint16", "c_uint32", "c_uint64", "c_ulong", "c_void_p",
    "function_at", "get_errno", "sizeof",
]  # fmt: skip


# ``_type_`` is the letter of the struct module; see the library reference, struct, "Format Characters".


class c_char(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class c_int8(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "b"


class c_uint8(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


class c_int16(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "h"


class c_uint16(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "H"


class c_int32(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class c_uint32(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class c_long(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class c_ulong(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class c_char_p(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class c_void_p(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


# Linux runs 64-bit Python on LP64 machines alone: long has 64 bits.
c_int, c_ubyte = c_int32, c_uint8
c_int64, c_uint64, c_size_t = c_long, c_ulong, c_ulong


class _Function(CFuncPtr):
    """A C function that returns int until told otherwise, and keeps its errno for get_errno."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = c_int


class _HoldingFunction(CFuncPtr):
    """The same with the interpreter's lock held during the call, as functions of the interpreter itself need it."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI
    _restype_ = c_int


class Library:
    """A shared library that is loaded by name, or with None the program itself. OSError when there is none.

    With ``hold`` its functions run without letting other threads run.
    """

    def __init__(self, name: str | None, *, hold: bool = False) -> None:
        self._handle = dlopen(name, 0)  # type: ignore[arg-type]  # None is the program itself
        self._kind = _HoldingFunction if hold else _Function

    def function(self, name: str, result: Any = c_int, arguments: list[Any] | None = None) -> Any:
        """A function object of its own, with its own types. OSError for a name that is not there."""
        function = self._kind(dlsym(self._handle, name))
        function.restype = result
        if arguments is not None:
            function.argtypes = arguments
        return function


def function_at(address: int, result: Any, arguments: list[Any]) -> Any:
    """The function whose instructions lie at an address."""
    function = _Function(address)
    function.restype = result
    function.argtypes = arguments
    return function
