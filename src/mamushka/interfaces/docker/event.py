"""An event as Docker shows it."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.events import Event

_KINDS = {"workload": "container"}


def message(event: Event) -> dict[str, Any]:
    """The object of ``GET /events``, with the older fields that clients still read."""
    kind = _KINDS.get(event.kind, event.kind)
    attributes = dict(event.attributes)
    older = {"status": event.action, "id": event.id} if kind in ("container", "image") else {}
    if kind == "container" and "image" in attributes:
        older["from"] = attributes["image"]
    return {
        **older,
        "Type": kind,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": attributes},
        "scope": "local",
        "time": int(event.time),
        "timeNano": round(event.time * 1e6) * 1000,
    }


def line(event: Event) -> str:
    """As ``docker events`` prints it: time, kind, action, id, attributes."""
    whole = round(event.time * 1e6)
    stamp = time.strftime(f"%Y-%m-%dT%H:%M:%S.{whole % 1_000_000:06d}000%z", time.localtime(whole // 1_000_000))
    attributes = ", ".join(f"{key}={word}" for key, word in sorted(event.attributes.items()))
    kind = _KINDS.get(event.kind, event.kind)
    return f"{stamp[:-2]}:{stamp[-2:]} {kind} {event.action} {event.id}" + (f" ({attributes})" if attributes else "")
