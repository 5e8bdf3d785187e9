"""A workload as the engine knows it: settings, state, and what was really used."""

from __future__ import annotations

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.settings import Settings
    from mamushka.runtime import Exit


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
    image_id: str  # the config's digest, or "host"
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
