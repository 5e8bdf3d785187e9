"""A workload's place in networks, and the three files of /etc that tell it about them."""

from __future__ import annotations

import os

from mamushka.engine import userns
from mamushka.engine.settings import Port
from mamushka.engine.workload import ACTIVE, Connection, load
from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.linux.process import initial
from mamushka.values import EMPTY, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.engine.engine import Engine
    from mamushka.engine.settings import Settings
    from mamushka.engine.wires import Wires
    from mamushka.engine.workload import Published, Workload
    from mamushka.network.carrier import Carrier

PORT_MAX = 65535


@value
class Place:
    """Where a workload is in the world of networks."""

    namespace: int = -1  # the network namespace, ours to close
    users: int = -1  # the user namespace that owns it, ours to close
    path: str | None = None  # of a network namespace to join; None: the host's
    connections: tuple[Connection, ...] = ()
    published: tuple[Published, ...] = ()
    files: Mapping[str, str] = EMPTY  # path inside: file on the host
    wires: Wires | None = None  # what the shim takes down, with descriptors that it holds
    carrier: Carrier | None = None  # what the shim runs for an ordinary user's workload

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open while the workload runs; ours to close."""
        held = self.wires.descriptors if self.wires else ()
        return tuple(fd for fd in (self.namespace, self.users, *held) if fd >= 0)


def mode(settings: Settings) -> str:
    """none, host, container:ID, bridge for any network with links, or outward for the one that an ordinary user has."""
    names = [item.network for item in settings.networks] or ["none"]
    special = [name for name in names if name in ("none", "host") or name.startswith("container:")]
    if special and len(names) > 1:
        raise Invalid(f"conflicting options: {special[0]} cannot be combined with another network")
    if special or initial():
        return special[0] if special else "bridge"
    from mamushka.engine.outward import check

    check(settings.networks)
    return "outward"


def join(engine: Engine, workload: Workload) -> Place:
    """Enter the networks; undone by ``leave``, and by closing the namespace."""
    kind = mode(workload.settings)
    if kind == "host":
        return Place(files=_write(workload, _added(workload) + _host_file("hosts"), _host_file("resolv.conf")))
    if kind.startswith("container:"):
        other = running(engine, kind.removeprefix("container:"))
        hint = "mamushka network create NAME, and --network NAME for both: they reach each other by name"
        _check_sharing(workload, other, "network", hint)
        return Place(path=f"/proc/{other.pid}/ns/net", files=_shared(engine, other))
    from mamushka.network.namespace import new_namespace

    opened: list[int] = []
    try:
        users = userns.namespace(workload)
        opened += [users] if users >= 0 else []
        if kind == "outward":
            return _carried(engine, workload, opened)
        namespace = new_namespace(users=users)
        opened.append(namespace)
        place = _plugged(engine, workload, namespace) if kind == "bridge" else _alone(workload, namespace)
        return replace(place, users=users)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise


def _added(workload: Workload) -> str:
    """What the user adds to /etc/hosts where it is the host's; the first line of a name wins."""
    if not workload.settings.extra_hosts:
        return ""
    from mamushka.network.names import hosts

    return hosts((), workload.settings.extra_hosts, gateway="127.0.0.1")


def _alone(workload: Workload, namespace: int) -> Place:
    """A namespace with nothing but its loopback."""
    if workload.settings.extra_hosts:
        from mamushka.network.names import hosts

        names = hosts([("127.0.1.1", workload.hostname)], workload.settings.extra_hosts)
    else:
        names = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{workload.hostname}\n"
    files = _write(workload, names, "")
    return Place(namespace=namespace, path=f"/proc/self/fd/{namespace}", files=files)


def _carried(engine: Engine, workload: Workload, opened: list[int]) -> Place:
    """For an ordinary user: a namespace whose packets a program carries."""
    from mamushka.engine import outward
    from mamushka.network import names
    from mamushka.network.carrier import REFUSED
    from mamushka.network.namespace import new_namespace

    host, settings = resolvers(), workload.settings
    out = outward.join(engine.paths, _ports(workload), names.nameservers(host))
    namespace = new_namespace(refused=REFUSED)
    opened.append(namespace)
    if out.resolver and not settings.dns:
        settings = replace(settings, dns=(out.resolver,))
    return Place(
        namespace=namespace,
        path=f"/proc/self/fd/{namespace}",
        connections=out.connections,
        published=out.published,
        files=_named(replace(workload, settings=settings), out.connections, host, responder=False),
        carrier=out.carrier,
    )


def _plugged(engine: Engine, workload: Workload, namespace: int) -> Place:
    from mamushka.engine import gc, plugging
    from mamushka.network import names

    host, settings = resolvers(), workload.settings
    servers = settings.dns or names.nameservers(host)
    ports = _ports(workload)
    try:
        joined = plugging.join(engine.networks, workload, ports, namespace, servers=servers)
    except Conflict:
        if not gc.sweep(engine):  # perhaps the port or address is a dead workload's, whose shim was killed
            raise
        joined = plugging.join(engine.networks, workload, ports, namespace, servers=servers)
    try:
        files = _named(workload, joined.connections, host, responder=bool(joined.wires.resolver))
    except BaseException:
        plugging.abandon(engine.networks, workload.id, joined.wires)
        raise
    return Place(
        namespace=namespace,
        path=f"/proc/self/fd/{namespace}",
        connections=joined.connections,
        published=joined.published,
        files=files,
        wires=joined.wires,
    )


def _named(workload: Workload, connections: tuple[Connection, ...], host: str, *, responder: bool) -> dict[str, str]:
    """The files of names for a workload with these addresses."""
    from mamushka.network import names

    settings = workload.settings
    first = next(iter(connections), Connection("", ""))  # it may have been taken out of every network
    own = f"{workload.hostname}.{settings.domainname} {workload.hostname}" if settings.domainname else workload.hostname
    hosts = names.hosts(
        [(address, own) for item in connections for address in (item.address, item.address6) if address],
        settings.extra_hosts,
        gateway=first.gateway,
        gateway6=first.gateway6,
    )
    resolv = names.resolv_conf(
        host,
        responder=responder,
        servers=settings.dns,
        search=settings.dns_search,
        options=settings.dns_options,
        ipv6=any(item.address6 for item in connections),
    )
    return _write(workload, hosts, resolv)


def _ports(workload: Workload) -> list[Port]:
    """Those that are named, and with publish_all those that the image or the settings expose."""
    ports = list(workload.settings.ports)
    for exposed in workload.exposed if workload.settings.publish_all else ():
        number, _, protocol = exposed.partition("/")
        first, _, last = number.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) > PORT_MAX:
            raise Invalid(f"invalid exposed port: {exposed!r}", hint="as in 80/tcp")
        named = {(port.port, port.protocol) for port in workload.settings.ports}
        wishes = (Port(port, protocol or "tcp") for port in range(int(first), int(last or first) + 1))
        ports += (port for port in wishes if (port.port, port.protocol) not in named)
    return ports


def resolvers() -> str:
    """The host's resolv.conf; where that names systemd-resolved's stub, the one with the real servers."""
    from mamushka.network import names

    text = _host_file("resolv.conf")
    if names.nameservers(text) == ["127.0.0.53"]:
        try:
            with open("/run/systemd/resolve/resolv.conf", encoding="utf-8", errors="surrogateescape") as file:
                return file.read(1 << 20)
        except OSError:
            return text
    return text


def leave(engine: Engine, workload: Workload) -> None:
    """Give addresses and ports back; harmless when it was in no network."""
    if mode(workload.settings) == "bridge":
        from mamushka.engine import plugging

        plugging.leave(engine.networks, workload.id)


def forget(engine: Engine, workload: Workload) -> None:
    """The workload is removed, and with it which networks it wished to be in."""
    if mode(workload.settings) == "bridge":
        from mamushka.engine import plugging

        plugging.forget(engine.networks, workload.id)


def running(engine: Engine, identifier: str) -> Workload:
    """Another workload whose namespaces are to be joined. Conflict unless it runs."""
    row = engine.state.find(identifier)
    if row.status not in ACTIVE:
        raise Conflict(f"cannot join the namespaces of a non running container: {identifier}")
    return engine.alive(load(row))


def joined(engine: Engine, workload: Workload) -> dict[str, str]:
    """Paths of the namespaces that are another workload's."""
    asked = workload.settings.namespaces
    found: dict[str, str] = {}
    for kind, choice in (("pid", asked.pid), ("uts", asked.uts), ("cgroup", asked.cgroup)):
        if choice.startswith("container:"):
            other = running(engine, choice.removeprefix("container:"))
            _check_sharing(workload, other, f"{kind} namespace", "choose --runtime container for both")
            found[kind] = f"/proc/{other.pid}/ns/{kind}"
    return found


def _check_sharing(workload: Workload, other: Workload, what: str, hint: str) -> None:
    """Unsupported where either has a kernel of its own: the host's process of a machine is its monitor, and a machine
    that joins a network takes the frames of the interface, so that a neighbour in it hears nothing any more."""
    if other.runtime != "container":
        raise Unsupported(f"cannot share the {what} of {other.name}: it is in its machine's own kernel", hint=hint)
    if workload.runtime != "container":
        raise Unsupported(f"a machine cannot share the {what} of {other.name}: it has a kernel of its own", hint=hint)


def _host_file(name: str) -> str:
    try:
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


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
