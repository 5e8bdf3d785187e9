"""Functions of C libraries that the system has, declared like the kernel's calls and loaded at the first one.

    libseccomp = Library("libseccomp.so.2", package="libseccomp2")

    @libseccomp.function
    def seccomp_init(def_action: u32) -> pointer: ...

Arguments convert by their annotations: u32, s32, u64 …, ``bytes`` is ``char *`` and ``pointer`` any address.
"""

from __future__ import annotations

import os

from mamushka.errors import Unsupported
from mamushka.linux import foreign
from mamushka.linux.abi import MACHINE, s32, s64, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeAlias, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    pointer: TypeAlias = int
else:
    pointer = foreign.c_void_p

_KINDS = {"u32": u32, "s32": s32, "u64": u64, "s64": s64, "bytes": foreign.c_char_p, "pointer": foreign.c_void_p}
# Where the common distributions put libraries; only asked to see whether and which one is there.
_PLACES = (f"/usr/lib/{MACHINE}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib")


class Library:
    """A shared library by the name of its file, loaded when the first of its functions is called."""

    def __init__(self, name: str, *, package: str) -> None:
        self.name = name
        self._package = package
        self._loaded: Any = None

    def load(self) -> Any:
        """The library. Unsupported when this host does not have it."""
        if self._loaded is None:
            try:
                self._loaded = foreign.Library(self.name)
            except OSError as error:
                raise Unsupported(
                    f"cannot load {self.name}: {error}", hint=f"install the package {self._package}"
                ) from error
        return self._loaded

    def file(self) -> os.stat_result | None:
        """The library's file without loading it, to tell one version from another; None where not found."""
        for place in _PLACES:
            try:
                return os.stat(f"{place}/{self.name}")
            except OSError:
                continue
        return None

    def function(self, declared: Callable[P, R]) -> Callable[P, R]:
        """Declare one of its functions by name and annotations."""
        name = declared.__name__
        annotations = dict(declared.__annotations__)
        result = _KINDS.get(str(annotations.pop("return")))
        kinds = [_KINDS[str(kind)] for kind in annotations.values()]
        bound: Any = None

        def call(*arguments: Any) -> Any:
            nonlocal bound
            if bound is None:
                bound = self.load().function(name, result, kinds)
            return bound(*arguments)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = declared.__doc__
        return call  # type: ignore[return-value]


LIBSECCOMP = Library("libseccomp.so.2", package="libseccomp2")
