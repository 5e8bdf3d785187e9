"""Structured events for whoever listens; silent and nearly free when nobody does.

    trace.event("layer.applied", diff_id=d, files=n)

Libraries never print or log. An interface that wants to show what happens subscribes a sink.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Sink = Callable[[str, dict[str, object]], None]

_sinks: list[Sink] = []
_with_plans: list[Sink] = []


def event(name: str, /, **fields: object) -> None:
    """Tell every sink. A sink that raises is the sink's own bug and reaches the caller."""
    for sink in _sinks:
        sink(name, fields)


def listening() -> bool:
    """Whether anybody would be told: worth asking before an event that costs something to describe."""
    return bool(_with_plans)


def subscribe(sink: Sink, *, plans: bool = True) -> None:
    """Add a sink; it is called in the thread and process of the event.

    Without ``plans`` nothing is described for its sake: it may miss what costs something to tell.
    """
    _sinks.append(sink)
    if plans:
        _with_plans.append(sink)


def forget() -> None:
    """Remove every sink: those of the process that this one was forked from are not its own."""
    _sinks.clear()
    _with_plans.clear()


def unsubscribe(sink: Sink) -> None:
    """Remove a sink that was added before."""
    _sinks.remove(sink)
    if sink in _with_plans:
        _with_plans.remove(sink)
