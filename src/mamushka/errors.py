"""The few kinds of failure, each with the value that failed, the reason and a hint one can act on.

Catch where one can decide, wrap with ``from``, never match message text. A failed kernel call stays an
OSError that names the call; a room turns it into one of these where it knows what it means for the user.
"""

from __future__ import annotations


class MamushkaError(Exception):
    """What failed and why; ``hint`` says what to do. Lower case, no full stop."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unsupported(MamushkaError):
    """This host, kernel or build cannot do what was asked."""


class Invalid(MamushkaError):
    """The input is wrong: a flag, a reference, a document, an archive."""


class NotFound(MamushkaError):
    """What was named does not exist."""


class Conflict(MamushkaError):
    """The state does not allow it: the name is taken, the workload runs."""


class Denied(MamushkaError):
    """Somebody with the right to say no said no: a registry, the kernel, a policy."""


class Unavailable(MamushkaError):
    """The other side did not answer or broke off; trying again may help."""


class GuestFault(MamushkaError):
    """The guest broke a rule; only that guest ends."""
