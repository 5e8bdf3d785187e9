"""How the kernel's structs, system calls and ioctls are declared: size, offset and direction follow from types.

    @struct
    class mount_attr:
        attr_set: u64 = 0
        ...

    @syscall(x86_64=442, aarch64=442, riscv64=442)
    def mount_setattr(dirfd: int, path: bytes, flags: int, attr: mount_attr, size: int) -> None: ...

A declared call converts its arguments by their annotations (int: long, bytes: char *, a struct: pointer,
None: NULL), and raises OSError that names the call and the first path it was given. ``DECLARED`` holds
every declaration; a test compares each with the C headers. This is, with ``libraries.py``, the one place
that computes what everything else declares.
"""

from __future__ import annotations

import os
import sys

from mamushka.linux import foreign

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeAlias, TypeVar, dataclass_transform

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")
    u8: TypeAlias = int
    u16: TypeAlias = int
    u32: TypeAlias = int
    u64: TypeAlias = int
    s8: TypeAlias = int
    s16: TypeAlias = int
    s32: TypeAlias = int
    s64: TypeAlias = int
    from typing import Annotated
else:
    u8, u16, u32, u64 = foreign.c_uint8, foreign.c_uint16, foreign.c_uint32, foreign.c_uint64
    s8, s16, s32, s64 = foreign.c_int8, foreign.c_int16, foreign.c_int32, foreign.c_int64

    class Annotated:
        """``Annotated[bytes, 16]`` is ``char[16]``; ``Annotated[bytearray, 16]`` is ``unsigned char[16]``."""

        def __class_getitem__(cls, item):
            kind, length = item
            return (foreign.c_char if kind is bytes else foreign.c_ubyte) * length

    def dataclass_transform(**_):
        return lambda decorator: decorator


__all__ = [
    "DECLARED", "IO", "IOR", "IOW", "IOWR", "Annotated", "address_of", "at", "ioctl", "over", "pack", "s8", "s16",
    "s32", "s64", "sizeof", "struct", "syscall", "u8", "u16", "u32", "u64", "unpack",
]  # fmt: skip

MACHINE = os.uname().machine

# Every declaration by name: ("struct", class) | ("syscall", number) | ("ioctl", number)
DECLARED: dict[str, tuple[str, Any]] = {}

_libc = foreign.Library(None)
_ioctl = _libc.function("ioctl")


def _evaluate(annotation: str, module: str) -> Any:
    """What an annotation names in its module, or here; nearly all are a name, which needs no compiler."""
    there = sys.modules[module].__dict__
    kind = there.get(annotation) or globals().get(annotation)
    return eval(annotation, globals(), there) if kind is None else kind


@dataclass_transform(kw_only_default=True)
def struct(cls: type[T]) -> type[T]:
    """Declare a C struct; fields in order, natural alignment, zero unless a default says otherwise.

    ``_pack_ = 1`` among the fields is C's attribute packed. As with ``values.value``, what startup.py compiles has no
    other class first.
    """
    return _of(cls.__name__, cls.__bases__, dict(cls.__dict__))  # type: ignore[no-any-return]


def _of(name: str, _bases: tuple[type, ...], given: dict[str, Any]) -> Any:
    """The struct that a class statement describes."""
    annotations = given.get("__annotations__", {})
    fields = [(field, _evaluate(kind, given["__module__"])) for field, kind in annotations.items()]
    defaults = {field: given[field] for field in annotations if field in given}

    def __init__(self: Any, **given: Any) -> None:
        foreign.Structure.__init__(self, **{**defaults, **given})

    body = {
        "__doc__": given.get("__doc__"),
        "__module__": given["__module__"],
        "__init__": __init__,
        "_fields_": fields,
    }
    if "_pack_" in given:
        body = {"_pack_": given["_pack_"], "_layout_": "ms", **body}
    declared = type(name, (foreign.Structure,), body)
    DECLARED[name] = ("struct", declared)
    return declared


vars(struct)["of"] = _of


def sizeof(item: object) -> int:
    """Bytes that a struct takes."""
    return foreign.sizeof(item)  # type: ignore[arg-type]


def pack(item: object) -> bytes:
    """A struct's bytes, as the kernel takes them inside a message."""
    return bytes(item)  # type: ignore[call-overload,no-any-return]


def unpack(kind: type[T], data: bytes | memoryview, offset: int = 0) -> T:
    """A struct out of a message. ValueError where fewer bytes are left than it takes."""
    return kind.from_buffer_copy(data, offset)  # type: ignore[attr-defined,no-any-return]


def address_of(item: object) -> int:
    """Where a struct or a writable buffer lies; valid while its owner lives."""
    if isinstance(item, bytearray | memoryview):
        return foreign.addressof(foreign.c_char.from_buffer(item))
    return foreign.addressof(item)  # type: ignore[arg-type]


def at(kind: type[T], address: int) -> T:
    """A struct that lies in memory of this process, to be read and written there. The caller keeps it mapped."""
    return kind.from_address(address)  # type: ignore[attr-defined,no-any-return]


def over(kind: type[T], buffer: bytearray, offset: int = 0) -> T:
    """A struct in a buffer that goes on behind it: the head of what has a length of its own."""
    return kind.from_buffer(buffer, offset)  # type: ignore[attr-defined,no-any-return]


def _convert(item: Any) -> Any:
    if isinstance(item, int):
        return foreign.c_long(item)
    if item is None or isinstance(item, bytes):
        return item
    if isinstance(item, bytearray | memoryview):
        return foreign.byref(foreign.c_char.from_buffer(item))
    return foreign.byref(item)


class _Converted:
    """The C type of a parameter that is not always an int; plain ints go faster as what they are."""

    from_param = staticmethod(_convert)


def _parameters(function: Any) -> list[Any]:
    kinds = [kind for name, kind in function.__annotations__.items() if name != "return"]
    return [foreign.c_long if kind == "int" else _Converted for kind in kinds]


def failure(call: str, arguments: tuple[Any, ...] = ()) -> OSError:
    """The OSError of the call that has just failed, naming it and the first path among its arguments."""
    number = foreign.get_errno()
    path = next((item for item in arguments if isinstance(item, bytes) and item), None)
    text = f"{call}: {os.strerror(number)}"
    return OSError(number, text) if path is None else OSError(number, text, os.fsdecode(path))


def syscall(*, x86_64: int, aarch64: int, riscv64: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a system call by its numbers. The result is the kernel's (int), or None where annotated."""
    number = {"x86_64": x86_64, "aarch64": aarch64, "riscv64": riscv64}.get(MACHINE, -1)

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        defaults = function.__defaults__ or ()
        arity = function.__code__.co_argcount
        invoke = _libc.function("syscall", foreign.c_long, [foreign.c_long, *_parameters(function)])

        def call(*arguments: Any) -> Any:
            missing = arity - len(arguments)
            if missing:
                arguments += defaults[len(defaults) - missing :]
            result = invoke(number, *arguments)
            if result == -1:
                raise failure(name, arguments)
            return result

        call.__name__ = call.__qualname__ = name
        call.__doc__ = function.__doc__
        DECLARED[name] = ("syscall", number)
        return call  # type: ignore[return-value]

    return declare


# asm-generic/ioctl.h: dir:2 size:14 type:8 nr:8
_NONE, _WRITE, _READ = 0, 1, 2


def _request(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def ioctl(request: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an ioctl that predates the encoding, by its whole number: ``fd`` first, then the argument."""

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__

        def call(fd: int, *arguments: Any) -> Any:
            result = _ioctl(foreign.c_int(fd), foreign.c_ulong(request), *map(_convert, arguments))
            if result == -1:
                raise failure(name, arguments)
            return result

        call.__name__ = call.__qualname__ = name
        call.__doc__ = function.__doc__
        DECLARED[name] = ("ioctl", request)
        return call  # type: ignore[return-value]

    return declare


def _encoded(direction: int, kind: int, number: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def declare(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        size = 0
        if direction != _NONE:
            last = code.co_varnames[code.co_argcount - 1]
            size = sizeof(_evaluate(str(function.__annotations__[last]), function.__module__))
        return ioctl(_request(direction, kind, number, size))(function)

    return declare


def IO(kind: int, number: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an ioctl without a struct; an int argument is passed as it is."""
    return _encoded(_NONE, kind, number)


def IOR(kind: int, number: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an ioctl that fills the struct it is given."""
    return _encoded(_READ, kind, number)


def IOW(kind: int, number: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an ioctl that reads the struct it is given."""
    return _encoded(_WRITE, kind, number)


def IOWR(kind: int, number: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an ioctl that reads and fills the struct it is given."""
    return _encoded(_READ | _WRITE, kind, number)
