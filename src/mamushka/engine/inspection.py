"""What the engine answers about workloads and the host."""

from __future__ import annotations

import os

from mamushka.engine import gc, wiring
from mamushka.engine.workload import ACTIVE, Workload, load
from mamushka.errors import Invalid, NotFound
from mamushka.linux.process import initial
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Connection

STATES = ("created", "running", "paused", "restarting", "exited", "dead", "removing")
_FILTERS = ("ancestor", "before", "exited", "id", "label", "name", "network", "since", "status", "volume")


def inspect(engine: Engine, identifier: str) -> Workload:
    """See Engine.inspect."""
    gc.settle(engine)
    row = engine.state.find(identifier)
    if row.status in ACTIVE and gc.sweep(engine, [row]):
        row = engine.state.find(row.id)
    workload = engine.alive(load(row))
    if workload.status in ACTIVE and wiring.mode(workload.settings) == "bridge":
        return replace(workload, connections=_connections(engine, workload.id))
    return workload


def _connections(engine: Engine, id: str) -> tuple[Connection, ...]:
    """Its places in networks now: it may have been connected and disconnected since it began."""
    from mamushka.engine.networks import connection

    networks = engine.networks
    return tuple(connection(networks.find(row.network), row) for row in networks.endpoints(id) if row.address)


def workloads(engine: Engine, every: bool, filters: Mapping[str, Sequence[str]]) -> list[Workload]:
    """See Engine.workloads."""
    for name in filters:
        if name not in _FILTERS:
            raise Invalid(f"invalid filter '{name}'", hint=f"one of {', '.join(_FILTERS)}")
    for status in filters.get("status", ()):
        if status not in STATES:
            raise Invalid(f"invalid filter 'status={status}'", hint=f"one of {', '.join(STATES)}")
    gc.sweep(engine)
    gc.orphans(engine)
    rows = engine.state.rows() if every or "status" in filters or "exited" in filters else engine.state.rows(*ACTIVE)
    tests = [_test(engine, name, texts) for name, texts in filters.items()]
    found = (engine.alive(load(row)) for row in rows)
    return [item for item in found if all(test(item) for test in tests)]


def _test(engine: Engine, name: str, texts: Sequence[str]) -> Callable[[Workload], bool]:
    """Whether a workload passes a filter: one of its texts must fit."""
    if name in ("before", "since"):
        border = engine.state.find(texts[0]).created
        return (lambda item: item.created < border) if name == "before" else (lambda item: item.created > border)
    if name == "label":  # here all must fit, as with Docker
        return lambda item: all(_labelled(item, text) for text in texts)
    return lambda item: any(_fits(engine, item, name, text) for text in texts)


def _labelled(item: Workload, text: str) -> bool:
    key, equals, content = text.partition("=")
    labels = item.settings.labels
    return key in labels and (not equals or labels[key] == content)


def _fits(engine: Engine, item: Workload, name: str, text: str) -> bool:
    if name == "id":
        return item.id.startswith(text)
    if name == "name":
        return text.removeprefix("/") in item.name
    if name == "status":
        return item.status == text
    if name == "exited":
        return item.status == "exited" and item.exit is not None and str(item.exit.status) == text
    if name == "volume":
        mounts = {(mount.destination, mount.source) for mount in item.settings.mounts} | set(item.volumes)
        return any(text in pair for pair in mounts)
    if name == "network":
        networks = {attachment.network for attachment in item.settings.networks}
        return text in networks or any(text in (place.network, place.network_id) for place in item.connections)
    return _descends(engine, item, text)


def _descends(engine: Engine, item: Workload, image: str) -> bool:
    if image in (item.image_name, item.image_id) or item.image_id.removeprefix("sha256:").startswith(image):
        return True
    try:
        return engine.images.get(image).id == item.image_id
    except (NotFound, Invalid):
        return False


def information(engine: Engine) -> dict[str, object]:
    """See Engine.information."""
    from mamushka.engine import runtimes

    counts = dict.fromkeys(STATES, 0)
    for item in workloads(engine, True, {}):
        counts[item.status] = counts.get(item.status, 0) + 1
    machine = os.uname()
    obstacles = {name: runtimes.obstacle(name) for name in runtimes.NAMES}
    return {
        "workloads": sum(counts.values()),
        "states": counts,
        "images": len(engine.images.images()),
        "data_root": engine.paths.data,
        "run_root": engine.paths.run,
        "runtimes": [name for name, reason in obstacles.items() if not reason],
        "runtimes_missing": {name: reason for name, reason in obstacles.items() if reason},
        "kernel": machine.release,
        "architecture": machine.machine,
        "hostname": machine.nodename,
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "rootless": _rootless(),
        "features": engine.runtime("container").features(),
    }


def _rootless() -> dict[str, object]:
    """For an ordinary user: his ids inside, which limits can be set, and what carries packets."""
    if initial():
        return {}
    from mamushka.container import cgroups
    from mamushka.linux import users
    from mamushka.network.carrier import find

    return {
        "ids": sum(size for _, _, size in users.ranges("uid")),
        "cgroup": cgroups.describe()[1],
        "network": find("pasta") or find("slirp4netns") or "none: apt-get install passt",
    }


def disk_usage(engine: Engine) -> dict[str, object]:
    """See Engine.disk_usage."""
    from mamushka.engine.rootfs import written
    from mamushka.storage.usage import usage

    items = workloads(engine, True, {})
    sizes = {item.id: written(item.directory) for item in items if os.path.isdir(item.directory)}
    volumes = engine.volumes.volumes()
    idle = [item.id for item in items if item.status not in ACTIVE]
    used = {layer for item in items for layer in item.layers}
    layers = {layer.diff_id: engine.layers.occupied(layer) for layer in engine.layers.layers()}
    return {
        "images": engine.images.images(all=True),
        "layers": layers,
        "layers_size": sum(layers.values()),
        "layers_reclaimable": sum(size for diff_id, size in layers.items() if diff_id not in used),
        "workloads": items,
        "workload_sizes": sizes,
        "workloads_size": sum(sizes.values()),
        "workloads_reclaimable": sum(sizes.get(id, 0) for id in idle),
        "volumes": volumes,
        "volume_sizes": {volume.name: usage(volume.path).size for volume in volumes},
    }
