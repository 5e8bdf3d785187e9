"""What the prune verbs share: their options, the question before and the account after."""

from __future__ import annotations

import sys

from mamushka.interfaces.cli.options import flag, many
from mamushka.interfaces.cli.output import out
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.interfaces.cli.options import Arguments

# Elsewhere -f is --filter; Docker's prune verbs give it to --force.
PRUNE = (
    flag("-f, --force", "Do not ask"),
    many("--filter", "Only what fits: key=value", "filter"),
)


def confirmed(arguments: Arguments, warning: str) -> bool:
    """Ask, unless told not to. No answer is a no."""
    if arguments.force:
        return True
    sys.stderr.write(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def reclaimed(title: str, removed: Iterable[str], freed: int | None = None) -> None:
    """What went, and how much room that made."""
    lines = list(removed)
    if lines:
        out("\n".join([title, *lines, ""]))
    if freed is not None:
        out(f"Total reclaimed space: {units.human_size(freed)}")
