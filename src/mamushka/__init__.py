"""Run any OCI image behind the wall you choose.

    import mamushka

    with mamushka.run("python:3.12", memory="1g", network="none") as box:
        print(box.exec("python", "-c", "print(6 * 7)").stdout)

What is offered here is the Python API, ``mamushka.interfaces.sdk``; it is imported when it is first used, so that
the command line, which shares this package, does not pay for it.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.errors import (
        Conflict,
        Denied,
        GuestFault,
        Invalid,
        MamushkaError,
        NotFound,
        Unavailable,
        Unsupported,
    )
    from mamushka.interfaces.sdk import (
        Box,
        Completed,
        Failed,
        Files,
        Mount,
        Process,
        Runtime,
        Snapshot,
        Stat,
        Verdict,
        aio,
        audit,
        boxes,
        get,
        images,
        once,
        pull,
        run,
    )

__all__ = [
    "Box", "Completed", "Conflict", "Denied", "Failed", "Files", "GuestFault", "Invalid", "MamushkaError", "Mount",
    "NotFound", "Process", "Runtime", "Snapshot", "Stat", "Unavailable", "Unsupported", "Verdict", "aio", "audit",
    "boxes", "get", "images", "once", "pull", "run",
]  # fmt: skip

_ERRORS = (
    "Conflict", "Denied", "GuestFault", "Invalid", "MamushkaError", "NotFound", "Unavailable", "Unsupported",
)  # fmt: skip


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'mamushka' has no attribute {name!r}")
    from importlib import import_module

    door = import_module("mamushka.errors" if name in _ERRORS else "mamushka.interfaces.sdk")
    return import_module("mamushka.interfaces.sdk.aio") if name == "aio" else getattr(door, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
