"""From rows to wires: a workload enters its networks, and leaves them.

Entering: addresses in one transaction, then bridge, link, port. Whoever dies in between leaves rows that say
what was begun, and ``leave`` takes all of it back, any number of times. The shim takes down what is
the kernel's (wires.py); what a killed one left goes here.

The network lock is shared by those who enter and exclusive for those who remove what looks unused.
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.engine.networks import DEFAULT, EndpointRow, connection
from mamushka.engine.paths import write_json
from mamushka.engine.wires import Wires, tidy
from mamushka.engine.workload import Published
from mamushka.errors import Conflict, Invalid
from mamushka.linux.flock import Lock
from mamushka.linux.nftables import Nftables
from mamushka.linux.rtnetlink import open_route
from mamushka.network import endpoint, portmap, reconcile
from mamushka.network.network import PortMapping
from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mamushka.engine.networks import NetworkRow, Networks
    from mamushka.engine.paths import Paths
    from mamushka.engine.settings import Attachment, Port
    from mamushka.engine.workload import Connection, Workload
    from mamushka.linux.netlink import Netlink

    Places = list[tuple[NetworkRow, EndpointRow]]


# How many free ports are tried that belong to workloads without shims; there are seldom any.
RESERVATIONS_MAX = 64


@value
class Joined:
    """A workload's place in its networks. The wires' descriptors are the caller's, to pass on to the shim."""

    wires: Wires
    connections: tuple[Connection, ...] = ()
    published: tuple[Published, ...] = ()


def lock_path(paths: Paths) -> str:
    """The lock between entering and removing."""
    return f"{paths.run}/network.lock"


def mark_path(paths: Paths, workload: str) -> str:
    """The file that tells that a workload's ports stand, since to ask the kernel would cost more."""
    return f"{paths.run}/ports-{workload}"


def index_path(paths: Paths, workload: str) -> str:
    """The file that lists the files of names of a workload's networks."""
    return f"{paths.run}/names/{workload}"


def directory_path(paths: Paths, network: str) -> str:
    """The file that tells the names of a network's members."""
    return f"{paths.run}/names/{network}"


def join(
    networks: Networks, workload: Workload, ports: Sequence[Port], namespace: int, *, servers: Sequence[str] = ()
) -> Joined:
    """Enter every network that the workload shall be in, and publish its ports.

    ``servers`` answer for names that a user-made network does not know.
    """
    leave(networks, workload.id)
    with networks.state.transaction():
        places = _allocate(networks, workload)
        tell_names(networks, workload.id, places)
    paths = networks.paths
    filter = Nftables()
    reservations: list[int] = []
    wires = Wires(
        root=paths.data,
        lock=lock_path(paths),
        mark=mark_path(paths, workload.id),
        links=tuple(endpoint.outer_name(row.endpoint()) for _, row in places),
        index=index_path(paths, workload.id),
        servers=tuple(servers) if any(not network.internal for network, _ in places) else (),
    )
    try:
        if any(network.name != DEFAULT for network, _ in places):
            from mamushka.network.responder import listen

            wires = replace(wires, resolver=listen(namespace))
        mappings = _plug(networks, filter, workload, places, ports, namespace, reservations)
    except BaseException:
        abandon(networks, workload.id, replace(wires, reservations=tuple(reservations), filter=filter.detach()))
        raise
    wires = replace(wires, ports=tuple(mappings), reservations=tuple(reservations), filter=filter.detach())
    for network, _ in places:
        networks.event("connect", network.id, container=workload.id, name=network.name, type=network.driver)
    return Joined(
        wires,
        connections=tuple(connection(network, row) for network, row in places),
        published=tuple(Published(item.port, item.protocol, _shown(item), item.host_port) for item in mappings),
    )


def abandon(networks: Networks, workload: str, wires: Wires) -> None:
    """The start failed: everything back at once, the wires' descriptors too."""
    for held in (*wires.reservations, *wires.resolver):
        os.close(held)
    leave(networks, workload)
    tidy(wires)


def _shown(mapping: PortMapping) -> str:
    return mapping.host_address or ("::" if ":" in mapping.address else "0.0.0.0")


def _allocate(networks: Networks, workload: Workload) -> Places:
    kept = {row.network: row for row in networks.endpoints(workload.id)}
    wishes: Places = []
    for attachment in workload.settings.networks:
        network = networks.find(name_of(attachment.network))
        before = kept.pop(network.id, None)
        if before is None or before.wanted:
            wishes.append((network, wish(workload, network, attachment)))
    # Each time another id, as a wish has: the link of the last time may still be there, it goes with its namespace.
    wishes += [
        (networks.find(row.network), replace(row, id=_new_id(), name=workload.name))
        for row in kept.values()
        if row.wanted
    ]
    ready = [(networks.make_way(network), row) for network, row in wishes]
    return [
        (network, networks.place(network, replace(row, interface=f"eth{number}")))
        for number, (network, row) in enumerate(ready)
    ]


def _new_id() -> str:
    return os.urandom(8).hex()


def name_of(network: str) -> str:
    """The name of a network that settings may leave out."""
    return DEFAULT if network in ("", "default") else network


def wish(workload: Workload, network: NetworkRow, attachment: Attachment) -> EndpointRow:
    """A place that has no addresses yet. Invalid where the network cannot give one, or not that one."""
    if network.driver != "bridge":
        raise Invalid(f"network {network.name} cannot be combined with another network")
    if network.name == DEFAULT and (attachment.address or attachment.aliases):
        raise Invalid(
            "addresses and aliases can be asked for in user-made networks only",
            hint="mamushka network create NAME, then --network NAME",
        )
    aliases = list(attachment.aliases) if network.name == DEFAULT else [*attachment.aliases, workload.id[:12]]
    return EndpointRow(
        workload=workload.id,
        network=network.id,
        id=_new_id(),
        wanted=1,
        requested=attachment.address,
        requested6=attachment.address6,
        aliases=document.dump(aliases).decode(),
        name=workload.name,
        mac=attachment.mac,
    )


def _plug(
    networks: Networks,
    filter: Nftables,
    workload: Workload,
    places: Places,
    ports: Sequence[Port],
    namespace: int,
    reservations: list[int],
) -> list[PortMapping]:
    scope = networks.scope
    with Lock(lock_path(networks.paths), shared=True), open_route() as route:
        outward = next((row.id for row, _ in places if not row.internal), "")
        fresh = [plug_in(networks, route, filter, place, namespace, place[0].id == outward) for place in places]
        mappings = []
        for mapping, port in zip(_mappings(places, ports, outward), ports, strict=False):
            reserved, held = _reserve(networks, workload, mapping, port.host_port_last)
            reservations.append(held)
            mappings.append(reserved)
        if mappings:
            _keep_ports(networks, workload.id, mappings)
            os.close(os.open(mark_path(networks.paths, workload.id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            portmap.publish(filter, scope, mappings)
    if any(fresh):
        _restore_others(networks, places)
    return mappings


def plug_in(
    networks: Networks,
    route: Netlink,
    filter: Nftables,
    place: tuple[NetworkRow, EndpointRow],
    namespace: int,
    default_route: bool,
) -> bool:
    """Plug one link in; whether the table had to be made."""
    network, scope = place[0].network(), networks.scope
    bridge, made = reconcile.establish(route, filter, scope, network)
    endpoint.connect(route, scope, network, bridge, place[1].endpoint(), namespace, default_route=default_route)
    return made


def _restore_others(networks: Networks, places: Places) -> None:
    """The table was new: it had been flushed if others live, and theirs comes back."""
    ours = {row.workload for _, row in places}
    if any(row.workload not in ours for row in networks.running()):
        restore(networks)


def _mappings(places: Places, ports: Iterable[Port], outward: str) -> list[PortMapping]:
    """Ports go to the workload's address in the network by which it goes out."""
    chosen = next((row for network, row in places if network.id == outward), None)
    if chosen is None:
        return []
    mappings = []
    for port in ports:
        six = ":" in port.host_address
        if six and not chosen.address6:
            raise Invalid(
                f"cannot publish {port.port} at {port.host_address}: the workload has no IPv6 address",
                hint="make its network with --ipv6 --subnet",
            )
        address = chosen.address6 if six else chosen.address
        mappings.append(PortMapping(address, port.port, port.host_port, port.protocol, port.host_address))
    return mappings


def _reserve(networks: Networks, workload: Workload, mapping: PortMapping, last: int) -> tuple[PortMapping, int]:
    """The mapping with the first port that is free, up to ``last`` where that is given."""
    while True:
        try:
            return _reserve_one(networks, workload, mapping)
        except Conflict:
            if mapping.host_port >= last:
                raise
            mapping = replace(mapping, host_port=mapping.host_port + 1)


def _reserve_one(networks: Networks, workload: Workload, mapping: PortMapping) -> tuple[PortMapping, int]:
    """The port and the descriptor that keeps it. A workload that outlived its shim keeps its ports without one."""
    passed_over: list[int] = []
    try:
        for _ in range(RESERVATIONS_MAX):
            reserved, held = portmap.reserve(mapping)
            if not _is_kept(networks, reserved):
                return reserved, held
            passed_over.append(held)  # held on to, so that the kernel offers another one
            if mapping.host_port:
                break
        raise portmap.allocated(mapping)
    except Conflict as error:
        where = f"driver failed programming external connectivity on endpoint {workload.name} ({workload.id})"
        raise Conflict(f"{where}: {error}", hint=error.hint) from error
    finally:
        for held in passed_over:
            os.close(held)


def _is_kept(networks: Networks, mapping: PortMapping) -> bool:
    for other in _ports(networks, "where host_port=? and protocol=?", mapping.host_port, mapping.protocol):
        hosts = {_shown(mapping), _shown(other)}
        if len(hosts) == 1 or (hosts & {"0.0.0.0", "::"} and (":" in mapping.address) == (":" in other.address)):
            return True
    return False


def _keep_ports(networks: Networks, workload: str, mappings: Sequence[PortMapping]) -> None:
    with networks.state.transaction() as state:
        for item in mappings:
            fields = workload, item.address, item.port, item.host_port, item.protocol, item.host_address
            state.execute("insert into ports values (?,?,?,?,?,?)", fields)


def _ports(networks: Networks, tail: str = "", *values: object) -> list[PortMapping]:
    columns = "address, port, host_port, protocol, host_address"
    return [PortMapping(*row) for row in networks.state.execute(f"select {columns} from ports {tail}", values)]


def leave(networks: Networks, workload: str) -> None:
    """Give a workload's addresses and ports back; harmless when it has none. It must not run any more.

    Its links go with its namespace, or with the shim's tidy: to delete one costs the kernel a grace period.
    """
    places = [row for row in networks.endpoints(workload) if row.address]
    if not places:
        return
    mark = mark_path(networks.paths, workload)
    if os.path.exists(mark):  # its shim was killed
        with Lock(lock_path(networks.paths)), Nftables() as filter:
            portmap.withdraw(filter, networks.scope, _ports(networks, "where workload=?", workload))
        os.unlink(mark)
    with networks.state.transaction() as state:
        state.execute("delete from ports where workload=?", (workload,))
        cleared = "address='', address6='', mac='', interface=''"
        state.execute(f"update endpoints set {cleared} where workload=?", (workload,))
        tell_names(networks, workload, [(networks.find(row.network), row) for row in places])


def rename(networks: Networks, workload: str, name: str) -> None:
    """Its neighbours know it by another name from now on."""
    with networks.state.transaction() as state:
        places = [row for row in networks.endpoints(workload) if row.address]
        state.execute("update endpoints set name=? where workload=?", (name, workload))
        tell_names(networks, workload, [(networks.find(row.network), row) for row in places])


def forget(networks: Networks, workload: str) -> None:
    """The workload is removed: nothing of it is kept."""
    leave(networks, workload)
    networks.state.execute("delete from endpoints where workload=?", (workload,))
    try:
        os.unlink(index_path(networks.paths, workload))
    except FileNotFoundError:  # it was in no network with names
        pass


def tell_names(networks: Networks, workload: str, places: Places) -> None:
    """Write the files of names anew; inside a transaction, so that they follow each other in its order."""
    if all(network.name == DEFAULT for network, _ in places):
        return
    os.makedirs(f"{networks.paths.run}/names", mode=0o700, exist_ok=True)
    entered = [networks.find(row.network) for row in networks.endpoints(workload) if row.address]
    told = [directory_path(networks.paths, network.id) for network in entered if network.name != DEFAULT]
    write_json(index_path(networks.paths, workload), told)
    for network, _ in places:
        if network.name == DEFAULT:
            continue
        members = [
            {
                "names": [row.name, *document.parse(row.aliases.encode(), "aliases")],
                "addresses": [address for address in (row.address, row.address6) if address],
            }
            for row in networks.members(network.id)
        ]
        write_json(directory_path(networks.paths, network.id), members)


def restore(networks: Networks) -> None:
    """Make the kernel's state what the rows say: after kills, after a flushed ruleset, after a reboot."""
    with Lock(lock_path(networks.paths)), open_route() as route, Nftables() as filter:
        running = networks.running()
        used = {row.network for row in running}
        reconcile.reconcile(
            route,
            filter,
            networks.scope,
            [networks.find(id).network() for id in sorted(used)],
            [row.endpoint() for row in running],
            _ports(networks),
        )
    _clear_names(networks)


def _clear_names(networks: Networks) -> None:
    """Files of names of what no longer exists, and half-written ones; all are written inside transactions."""
    directory = f"{networks.paths.run}/names"
    with networks.state.transaction() as state:
        known = {id for (id,) in state.execute("select id from networks union select workload from endpoints")}
        try:
            stale = [name for name in os.listdir(directory) if name not in known]
        except FileNotFoundError:  # nobody was ever in a network with names
            return
        for name in stale:
            os.unlink(f"{directory}/{name}")
