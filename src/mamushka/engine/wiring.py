"""A workload's place in networks, and the three files of /etc that tell it about them."""

from __future__ import annotations

import os

from mamushka.engine.workload import ACTIVE, load
from mamushka.errors import Conflict, Invalid
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.engine.engine import Engine
    from mamushka.engine.settings import Settings
    from mamushka.engine.workload import Connection, Published, Workload


@value
class Place:
    """Where a workload is in the world of networks."""

    namespace: int = -1  # the network namespace, ours to close
    path: str | None = None  # of a network namespace to join; None: the host's
    connections: tuple[Connection, ...] = ()
    published: tuple[Published, ...] = ()
    files: Mapping[str, str] = EMPTY  # path inside: file on the host


def mode(settings: Settings) -> str:
    """none, host, container:ID, or bridge for any network with links."""
    names = [item.network for item in settings.networks] or ["none"]
    special = [name for name in names if name in ("none", "host") or name.startswith("container:")]
    if special and len(names) > 1:
        raise Invalid(f"conflicting options: {special[0]} cannot be combined with another network")
    return special[0] if special else "bridge"


def join(engine: Engine, workload: Workload) -> Place:
    """Enter the networks; undone by ``leave``, and by closing the namespace."""
    kind = mode(workload.settings)
    if kind == "host":
        return Place(files=_write(workload, _host_file("hosts"), _host_file("resolv.conf")))
    if kind.startswith("container:"):
        other = running(engine, kind.removeprefix("container:"))
        return Place(path=f"/proc/{other.pid}/ns/net", files=_shared(engine, other))
    from mamushka.network.namespace import new_namespace

    namespace = new_namespace()
    path = f"/proc/self/fd/{namespace}"
    return Place(namespace=namespace, path=path, files=_write(workload, _hosts(workload.hostname), ""))


def leave(engine: Engine, workload: Workload) -> None:
    """Give addresses and ports back; harmless when it was in no network."""


def running(engine: Engine, identifier: str) -> Workload:
    """Another workload whose namespaces are to be joined. Conflict unless it runs."""
    row = engine.state.find(identifier)
    if row.status not in ACTIVE:
        raise Conflict(f"cannot join the namespaces of a non running container: {identifier}")
    return engine.alive(load(row))


def joined(engine: Engine, settings: Settings) -> tuple[dict[str, str], str]:
    """Paths of the namespaces that are another workload's, and its /dev/shm."""
    asked = settings.namespaces
    found: dict[str, str] = {}
    shm = ""
    for kind, choice in (("pid", asked.pid), ("ipc", asked.ipc), ("uts", asked.uts), ("cgroup", asked.cgroup)):
        if choice.startswith("container:"):
            pid = running(engine, choice.removeprefix("container:")).pid
            found[kind] = f"/proc/{pid}/ns/{kind}"
            shm = f"/proc/{pid}/root/dev/shm" if kind == "ipc" else shm
    return found, shm


def _host_file(name: str) -> str:
    try:
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _hosts(hostname: str) -> str:
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"


def _write(workload: Workload, hosts: str, resolv: str) -> dict[str, str]:
    texts = {"hosts": hosts, "resolv.conf": resolv, "hostname": f"{workload.hostname}\n"}
    for name, text in texts.items():
        fd = os.open(f"{workload.directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(fd, text.encode("utf-8", "surrogateescape"))
        os.close(fd)
    return {f"/etc/{name}": f"{workload.directory}/{name}" for name in texts}


def _shared(engine: Engine, other: Workload) -> dict[str, str]:
    directory = engine.paths.workload(other.id)
    names = ("hosts", "resolv.conf", "hostname")
    return {f"/etc/{name}": f"{directory}/{name}" for name in names if os.path.exists(f"{directory}/{name}")}
