"""Where the guest's first process is: built beside its source, and part of an installed package.

After a newer version was fetched the program may still be an older one's, whose words are others. Git gives the files
that it changes the time of that moment; so where a source is younger than the program, what the program says of itself
(guest/build.py) is held against the sources.
"""

from __future__ import annotations

import os

from mamushka.errors import Unsupported

_GUEST = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "guest")


def guest_program(machine: str, directory: str = _GUEST) -> str:
    """The static program for guests of this kind of processor; Unsupported where it was not built, or of other sources.

    ``directory`` has the sources, and what was built of them.
    """
    path = os.path.join(directory, f"init.{machine}")
    try:
        built = os.stat(path).st_mtime_ns
    except FileNotFoundError:
        raise _unfit(f"there is no first process for guests of {machine}: {path} is missing", machine) from None
    with os.scandir(directory) as entries:
        younger = any(item.stat().st_mtime_ns > built for item in entries if item.name.endswith((".c", ".h")))
    if younger and not _is_of(path, directory):
        raise _unfit(
            f"the first process for guests of {machine} was not built from its present sources: {path}", machine
        )
    return path


def _is_of(path: str, directory: str) -> bool:
    """Whether a program was built from what is in the directory."""
    from mamushka.guest import build

    said = f"{build.MARK}{build.digest(directory)}".encode()
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - len(said)))
        return file.read() == said


def _unfit(text: str, machine: str) -> Unsupported:
    return Unsupported(text, hint=f"pip install ziglang, then python {_GUEST}/build.py {machine}")
