"""What all machines of a host have in common, unless a workload says otherwise: a file of the user's, or of the host's:

{"kernel": "/path", "cpus": 2, "memory": 1073741824, "root": "layers"}
"""

from __future__ import annotations

import os

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SYSTEM = "/etc/mamushka/machines.json"
_KINDS = {"kernel": str, "cpus": int, "memory": int, "root": str}


@value
class Configuration:
    """Memory in bytes; zeros and empty texts where nothing is said."""

    kernel: str = (
        ""  # a file, a directory with a kernel and its modules, or image:REFERENCE; empty: the newest that fits
    )
    cpus: int = 0
    memory: int = 0
    root: str = ""  # what a machine's root is: see machine_root


def read(environment: Mapping[str, str] | None = None) -> Configuration:
    """MAMUSHKA_KERNEL, then the first of the files that is there. Invalid where it cannot be understood.

    ``environment`` stands for this process's own.
    """
    from mamushka import document

    given = os.environ if environment is None else environment
    found: Any = {}
    path = ""
    for path in places(given):
        try:
            with open(path, "rb") as file:
                found = document.parse(file.read(document.SIZE_MAX + 1), path)
        except (FileNotFoundError, PermissionError):
            continue
        break
    named = given.get("MAMUSHKA_KERNEL", "")
    return Configuration(**{**_checked(found, path), **({"kernel": named} if named else {})})


def places(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where it may be, the more important first."""
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '/root')}/.config"
    return f"{home}/mamushka/machines.json", SYSTEM


def _checked(found: Any, path: str) -> Mapping[str, Any]:
    from mamushka.errors import Invalid

    for name, item in found.items() if isinstance(found, dict) else (("", None),):
        if type(item) is not _KINDS.get(name):  # a bool is an int to isinstance
            raise Invalid(f"{path} has {name!r}: {item!r}", hint=f"it is an object with {', '.join(_KINDS)}")
    return found  # type: ignore[no-any-return]
