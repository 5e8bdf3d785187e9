"""A workload as the engine knows it: settings, state, and what was really used.

Its life is a table. ``starting`` and ``removing`` are never seen for long: they mark what a killed process left half
done, for the next one to finish (gc.py).
"""

from __future__ import annotations

from mamushka import document
from mamushka.engine.records import decode, encode
from mamushka.engine.settings import Settings
from mamushka.errors import Conflict
from mamushka.runtime import Exit
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.state import Row


LIFE: dict[str, dict[str, str]] = {
    "created": {"start": "starting", "remove": "removing"},
    "starting": {"ran": "running", "failed": "created", "end": "exited", "remove": "removing"},
    "running": {"pause": "paused", "end": "exited", "again": "restarting", "remove": "removing"},
    "paused": {"unpause": "running", "end": "exited", "remove": "removing"},
    "restarting": {"ran": "running", "end": "exited", "remove": "removing"},
    "exited": {"start": "starting", "remove": "removing"},
    "dead": {"remove": "removing"},
    "removing": {"failed": "dead", "remove": "removing"},
}
# States in which a shim serves it.
ACTIVE = ("starting", "running", "paused", "restarting")


def after(status: str, event: str, name: str) -> str:
    """The state that follows; Conflict where the event has no place in this state."""
    following = LIFE[status].get(event)
    if following is None:
        raise Conflict(f"cannot {event} container {name}: it is {status}")
    return following


@value
class Connection:
    """A workload's place in one network."""

    network: str  # the network's name
    network_id: str
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()


@value
class Published:
    """A port that the host really answers on."""

    port: int
    protocol: str
    host_address: str
    host_port: int


@value
class Workload:
    """Times are seconds since the epoch, 0 where it has not happened."""

    id: str
    name: str
    settings: Settings
    image_id: str  # the config's digest, "host", or rootfs:PATH
    image_name: str  # as the user named it
    command: tuple[str, ...]  # entrypoint and arguments as executed
    environment: tuple[str, ...]
    status: str  # created | running | paused | restarting | exited | dead | removing
    created: float
    started: float = 0.0
    finished: float = 0.0
    pid: int = 0
    exit: Exit | None = None
    error: str = ""
    restarts: int = 0
    runtime: str = "container"  # the wall that is really used
    runtime_reason: str = ""  # why this one
    connections: tuple[Connection, ...] = ()
    published: tuple[Published, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()  # (destination, volume name)
    log_path: str = ""
    hostname: str = ""
    directory: str = ""  # the writable top and the bundle
    image_volumes: tuple[str, ...] = ()  # where the image declares volumes
    exposed: tuple[str, ...] = ()  # "80/tcp", by the image and the settings
    user: str = ""
    working_directory: str = "/"
    stop_signal: str = "SIGTERM"
    layers: tuple[str, ...] = ()  # diff_ids, lowest first


# What changes while it lives stands apart from what was asked for.
_NEWS = ("status", "started", "finished", "pid", "exit", "error", "restarts", "connections", "published")


def record(workload: Workload) -> dict[str, Any]:
    """What it was asked to be, as its directory and the database keep it."""
    return {name: item for name, item in encode(workload).items() if name not in _NEWS}


def load(row: Row) -> Workload:
    """A workload from its row."""
    known = {**document.parse(row.record.encode(), "a workload"), **document.parse(row.news.encode(), "its news")}
    if known.get("exit") is None:
        known.pop("exit", None)
    return decode(Workload, {**known, "id": row.id, "name": row.name, "status": row.status, "created": row.created})
