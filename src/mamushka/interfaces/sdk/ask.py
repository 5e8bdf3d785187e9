"""What one asks of a box, in plain Python, translated into the engine's settings."""

from __future__ import annotations

from typing import TypedDict

from mamushka.engine.runtimes import of_machines
from mamushka.engine.settings import Attachment, Device, Limits, Mount, Namespaces, Port, Restart, Security, Settings
from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Asked(TypedDict, total=False):
    """Every key that ``run`` and ``once`` take besides their own; all are optional."""

    name: str
    environment: Mapping[str, str]
    working_directory: str
    user: str  # "1000", "ada", "1000:1000"
    groups: Sequence[str]
    hostname: str
    entrypoint: Sequence[str]  # empty: none, not even the image's
    mounts: Mapping[str, str] | Sequence[Mount]  # {"/host/path" or "volume": "/inside", or "/inside:ro"}
    tmpfs: Sequence[str]
    ports: Mapping[int | str, int | str] | Sequence[int | str]  # {8080: 80}, {"127.0.0.1:8080": "80/tcp"}; [80]: any
    network: str | Sequence[str]  # bridge, none, host, container:ID, or names of networks
    aliases: Sequence[str]
    dns: Sequence[str]
    extra_hosts: Mapping[str, str]
    memory: int | str  # bytes, or "512m", "1g"
    cpus: float
    pids: int
    shm_size: int | str
    read_only: bool
    privileged: bool
    capabilities_add: Sequence[str]
    capabilities_drop: Sequence[str]
    seccomp: str  # "unconfined", or a profile as JSON
    landlock: str  # "ro,rw:/tmp", "rx:/usr,connect:443", or a policy as JSON
    devices: Sequence[str]  # "/dev/fuse", "/dev/sda:/dev/xvda:r"
    sysctls: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]  # of its bundle: {"com.mamushka.machine.root": "layers"}
    platform: str
    restart: str  # no, always, unless-stopped, on-failure, on-failure:3
    stop_signal: str
    stop_timeout: int
    runtime: str | Sequence[str]  # "container", or an order of preference: "vm,container"
    kernel: str  # of its machine: a file, or a directory with a kernel and its modules
    cold: bool  # its machine is booted, also where a saved one is there to begin from
    user_namespace: bool
    init: bool
    rootfs: bool  # the image is the path of a directory, the root in place of an image's
    terminal: bool


def settings(image: str, command: tuple[str, ...], asked: Mapping[str, Any]) -> Settings:
    """The engine's settings. Invalid for a key or a value that means nothing."""
    fields: dict[str, Any] = {"image": image, "command": command}
    parts: dict[str, dict[str, Any]] = {"limits": {}, "security": {}}
    mounts = (*_mounts(asked.get("mounts", ())), *(Mount("tmpfs", place) for place in asked.get("tmpfs", ())))
    for key, item in asked.items():
        if key == "user_namespace":
            fields["namespaces"] = Namespaces(user="private" if item else "")
        elif key in _PLAIN:
            fields[key] = _PLAIN[key](item)
        elif key in _PARTS:
            part, convert = _PARTS[key]
            parts[part][key] = convert(item)
        elif key not in ("mounts", "tmpfs", "network", "aliases", "kernel", "cold", "annotations"):
            raise Invalid(f"there is no setting {key!r}", hint=f"the settings are: {', '.join(Asked.__annotations__)}")
    names = fields.get("runtime", ())
    return Settings(
        **fields,
        annotations={
            **asked.get("annotations", {}),
            **of_machines(names, asked.get("kernel", ""), bool(asked.get("cold"))),
        },
        mounts=mounts,
        networks=_networks(asked.get("network", "bridge"), tuple(asked.get("aliases", ()))),
        limits=Limits(**parts["limits"]),
        security=Security(**parts["security"]),
    )


def size(item: int | str) -> int:
    """Bytes from a number, or from a number with a unit: k, m, g, t, each 1024 of the one before."""
    if isinstance(item, int):
        return item
    text = item.strip().lower()
    number = text.rstrip("bikmgt")
    unit = text[len(number) :].removesuffix("b").removesuffix("i")
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError) as error:
        raise Invalid(f"{item!r} is not a size", hint="write bytes as a number, or 512m, 1.5g") from error


def _mounts(asked: Mapping[str, str] | Sequence[Mount]) -> tuple[Mount, ...]:
    if not hasattr(asked, "items"):
        return tuple(asked)
    return tuple(_mount(source, place) for source, place in asked.items())


def _mount(source: str, place: str) -> Mount:
    destination, _, mode = place.partition(":")
    if mode not in ("", "ro", "rw") or not destination.startswith("/"):
        raise Invalid(f"cannot mount {source!r} at {place!r}", hint="write {'/host/path': '/inside'} or '/inside:ro'")
    kind = "bind" if source.startswith("/") else "volume"
    return Mount(kind, destination, source, read_only=mode == "ro")


def _ports(asked: Mapping[int | str, int | str] | Sequence[int | str]) -> tuple[Port, ...]:
    if not isinstance(asked, dict):
        return tuple(_port("0", str(inside)) for inside in asked)
    return tuple(_port(str(outside), str(inside)) for outside, inside in asked.items())


def _port(outside: str, inside: str) -> Port:
    address, _, host_port = outside.rpartition(":")
    port, _, protocol = inside.partition("/")
    if not (port.isdecimal() and host_port.isdecimal() and int(port) in range(1, 65536) and int(host_port) < 65536):
        raise Invalid(f"{outside!r}: {inside!r} is not a port", hint="write ports={8080: 80}, or ports=[80] for any")
    return Port(int(port), protocol or "tcp", address.strip("[]"), int(host_port))


def _networks(asked: str | Sequence[str], aliases: tuple[str, ...]) -> tuple[Attachment, ...]:
    names = (asked,) if isinstance(asked, str) else asked
    return tuple(Attachment(name, aliases) for name in names)


def _device(text: str) -> Device:
    source, destination, access = (*text.split(":"), "", "")[:3]
    return Device(source, destination or source, access or "rwm")


def _restart(text: str) -> Restart:
    policy, _, retries = text.partition(":")
    if policy not in ("no", "always", "unless-stopped", "on-failure") or not (retries or "0").isdecimal():
        raise Invalid(f"{text!r} is not a restart policy", hint="no, always, unless-stopped, on-failure:N")
    return Restart(policy, int(retries or 0))


def _runtime(asked: str | Sequence[str]) -> tuple[str, ...]:
    names = asked.split(",") if isinstance(asked, str) else asked
    return tuple(name.strip() for name in names)


def _same(item: Any) -> Any:
    return item


def _landlock(policy: str) -> str:
    from mamushka.container.landlock import parse

    parse(policy)
    return policy


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "name": _same,
    "environment": lambda asked: tuple(f"{name}={item}" for name, item in asked.items()),
    "working_directory": _same,
    "user": str,
    "groups": tuple,
    "hostname": _same,
    "entrypoint": tuple,
    "ports": _ports,
    "dns": tuple,
    "extra_hosts": lambda asked: tuple(f"{name}:{address}" for name, address in asked.items()),
    "shm_size": size,
    "read_only": bool,
    "devices": lambda asked: tuple(_device(text) for text in asked),
    "sysctls": dict,
    "labels": dict,
    "platform": _same,
    "restart": _restart,
    "stop_signal": _same,
    "stop_timeout": int,
    "runtime": _runtime,
    "init": bool,
    "rootfs": bool,
    "terminal": bool,
}

_PARTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "memory": ("limits", size),
    "cpus": ("limits", float),
    "pids": ("limits", int),
    "privileged": ("security", bool),
    "capabilities_add": ("security", tuple),
    "capabilities_drop": ("security", tuple),
    "seccomp": ("security", _same),
    "landlock": ("security", _landlock),
}
