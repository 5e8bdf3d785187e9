"""What happened to workloads, images, networks and volumes, in order."""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


@value
class Event:
    """One thing that happened. ``attributes`` holds name, image, exitCode, signal … as they apply."""

    time: float  # seconds since the epoch, to the nanosecond as far as a float goes
    kind: str  # workload | image | network | volume
    action: str  # create start die stop kill oom pause unpause destroy rename exec_start … pull push tag untag delete
    id: str
    attributes: Mapping[str, str] = EMPTY
