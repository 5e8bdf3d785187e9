"""What changes the host is a plan first: operations that say what they do, do it, and undo it.

A plan is data. ``--debug`` prints it, tests assert it, and ``run`` executes it in order; when an operation
fails, the ones already done are undone in reverse and the first error goes on. Undoing must be safe to
repeat, because a process that was killed half-way is repaired by undoing the whole plan again.
"""

from __future__ import annotations

from mamushka import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Operation(Protocol):
        """One change to the host."""

        def describe(self) -> str:
            """One line, as a person would type or say it."""

        def execute(self) -> None:
            """Make the change, or raise and leave nothing half done."""

        def undo(self) -> None:
            """Take it back; harmless when it was never made or is gone already."""


def run(operations: Iterable[Operation]) -> None:
    """Execute in order; on failure undo what was done, newest first, then raise the first error."""
    done: list[Operation] = []
    try:
        for operation in operations:
            trace.event("plan.execute", operation=operation.describe())
            done.append(operation)
            operation.execute()
    except BaseException:
        undo(done)
        raise


def undo(operations: list[Operation]) -> None:
    """Take back in reverse order. Every undo is tried; failures are traced, not raised."""
    for operation in reversed(operations):
        try:
            operation.undo()
        except OSError as error:
            trace.event("plan.undo_failed", operation=operation.describe(), error=str(error))


def describe(operations: Iterable[Operation]) -> str:
    """The plan as text, one operation a line."""
    return "\n".join(operation.describe() for operation in operations)
