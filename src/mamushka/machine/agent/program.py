"""Where the guest's first process is: built beside its source, and part of an installed package."""

from __future__ import annotations

import os

from mamushka.errors import Unsupported

_GUEST = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "guest")


def guest_program(machine: str) -> str:
    """The static program for guests of this kind of processor; Unsupported where it was not built."""
    path = os.path.join(_GUEST, f"init.{machine}")
    if not os.path.exists(path):
        raise Unsupported(f"there is no first process for guests of {machine}: {path} is missing",
                          hint=f"pip install ziglang, then python {_GUEST}/build.py {machine}")  # fmt: skip
    return path
