"""``unshare``: a program inside the user namespace of an ordinary user's workloads."""

from __future__ import annotations

import os

from mamushka.errors import Invalid
from mamushka.interfaces.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session


def unshare(arguments: Arguments, session: Session) -> int:
    """Become the program, or a shell; what it runs finds the same workloads."""
    from mamushka.runtime import CommandNotFound

    if os.geteuid() == 0:
        raise Invalid(
            "unshare is for ordinary users: root needs no user namespace",
            hint="run the program as it is: root has all rights",
        )
    roots = {"MAMUSHKA_DATA_ROOT": session.data_root, "MAMUSHKA_RUN_ROOT": session.run_root}
    session.engine  # noqa: B018  opening it makes this process root of the namespace
    command = list(arguments.operands) or [os.environ.get("SHELL") or "/bin/sh"]
    try:
        os.execvpe(command[0], command, {**os.environ, **roots})
    except FileNotFoundError:
        raise CommandNotFound(f"there is no program {command[0]!r}") from None


COMMANDS = {
    "unshare": Command(
        unshare,
        "[PROGRAM] [ARG...]",
        interspersed=False,
        failure=125,
        notes="Root inside is you, and from 1 on come your subordinate ids: files of volumes and images can be read\n"
        "and removed here whoever they belong to. A program with threads uses the Python API when it is begun so.",
    )
}
