"""What a workload sees at which path: the default mounts, its own small files, volumes, binds and memory."""

from __future__ import annotations

import os

from mamushka.engine.userns import mapped
from mamushka.errors import Invalid
from mamushka.spec.runtime import Mount as SpecMount
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.engine.settings import Mount, Settings

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


@value
class Sources:
    """Where things are on the host that the settings only name."""

    files: Mapping[str, str] = EMPTY  # path inside: file, for /etc/hosts and its like
    volumes: Mapping[str, str] = EMPTY  # destination: directory of the volume
    joined: Mapping[str, str] = EMPTY  # kind of namespace: path of another workload's
    further: tuple[SpecMount, ...] = ()  # below everything else: the programs of the image ``host``


def mounts(settings: Settings, sources: Sources) -> tuple[SpecMount, ...]:
    """All mounts, those further up in the tree first."""
    # What is the engine's own belongs to root inside, also where that is nobody outside.
    ours = ("bind", "rprivate", "idmap") if mapped(settings) else ("rbind", "rprivate")
    asked = [mount(item, sources.volumes) for item in settings.mounts]
    if mapped(settings):
        asked = [_mapped(item) if item.source in sources.volumes.values() else item for item in asked]
    taken = {item.destination for item in asked}
    volumes = [
        _bind(destination, path, ours) for destination, path in sources.volumes.items() if destination not in taken
    ]
    files = [_bind(inside, path, ours) for inside, path in sources.files.items()]
    chosen = {item.destination: item for item in (*sources.further, *_defaults(settings), *files, *volumes, *asked)}
    return tuple(
        sorted(chosen.values(), key=lambda item: item.destination.count("/") if item.destination != "/" else 0)
    )


def _mapped(item: SpecMount) -> SpecMount:
    return _bind(item.destination, item.source, (*item.options, "idmap"))


def _bind(destination: str, source: str, options: tuple[str, ...]) -> SpecMount:
    return SpecMount(destination, "bind", source, options)


def _defaults(settings: Settings) -> list[SpecMount]:
    from mamushka.container.defaults import MOUNTS

    privileged, ipc = settings.security.privileged, settings.namespaces.ipc
    found = []
    for item in MOUNTS:
        options = item.options
        if item.destination == "/dev/shm":
            if ipc in ("host", "none"):
                continue
            options = (*(word for word in options if not word.startswith("size=")), f"size={settings.shm_size}")
        if privileged and item.destination in ("/sys", "/sys/fs/cgroup"):
            options = tuple(word for word in options if word != "ro")
        found.append(SpecMount(item.destination, item.type, item.source, options))
    if ipc == "host":
        found.append(_bind("/dev/shm", "/dev/shm", ("rbind", "rprivate")))
    return found


def mount(item: Mount, volumes: Mapping[str, str]) -> SpecMount:
    """One that was asked for."""
    if not item.destination.startswith("/"):
        raise Invalid(f"invalid mount path: {item.destination!r}: mount path must be absolute")
    destination = os.path.normpath(item.destination)
    if destination == "/":
        raise Invalid("invalid mount: the destination can't be '/'")
    if item.kind == "tmpfs":
        return _tmpfs(item, destination)
    source = _subpath(volumes[item.destination], item.subpath) if item.kind == "volume" else _source(item)
    if item.propagation and item.propagation not in _PROPAGATIONS:
        raise Invalid(f"invalid propagation {item.propagation!r}", hint=f"one of {', '.join(_PROPAGATIONS)}")
    read_only = (("rro" if item.recursive else "ro"),) if item.read_only else ()
    binding = "rbind" if item.recursive else "bind"
    return _bind(destination, source, (binding, item.propagation or "rprivate", *read_only))


def _source(item: Mount) -> str:
    if not item.source.startswith("/"):
        raise Invalid(f"invalid mount: the bind source path must be absolute: {item.source!r}")
    if not os.path.exists(item.source):
        if not item.create_source:
            raise Invalid(f'invalid mount config for type "bind": bind source path does not exist: {item.source}')
        os.makedirs(item.source, exist_ok=True)
    return item.source


def _subpath(volume: str, subpath: str) -> str:
    """A directory inside a volume. Its links are not followed out of the volume."""
    if not subpath:
        return volume
    path = os.path.realpath(f"{volume}/{subpath}")
    if path != os.path.realpath(volume) and not path.startswith(os.path.realpath(volume) + "/"):
        raise Invalid(f"the volume's sub-path {subpath!r} leads out of the volume")
    if not os.path.exists(path):
        raise Invalid(f"the volume has no {subpath!r}")
    return path


def _tmpfs(item: Mount, destination: str) -> SpecMount:
    words = ["nosuid", "nodev", "noexec"]
    for word in item.options:
        words = [known for known in words if known not in (f"no{word}", word)]
        words.append(word)
    if item.size:
        words.append(f"size={item.size}")
    if not any(word.startswith("mode=") for word in words):
        words.append(f"mode={item.mode:o}")
    return SpecMount(destination, "tmpfs", "tmpfs", tuple(words))


def anonymous(settings: Settings, image_volumes: Sequence[str]) -> list[str]:
    """Destinations where the image declares a volume and the settings put nothing else."""
    taken = {os.path.normpath(item.destination) for item in settings.mounts}
    return [path for path in image_volumes if os.path.normpath(path) not in taken and path.startswith("/")]
