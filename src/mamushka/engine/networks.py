"""Networks as the engine keeps them: what exists, who is in it, which addresses are taken.

Who is in which network, with which address, stands in the database: an address is given out inside a
transaction, so no two workloads get the same. What the kernel does stands in the kernel (plugging.py), and is
derived from these rows again whenever it has been lost.
"""

from __future__ import annotations

import os

from mamushka import document
from mamushka.engine.ids import is_hex, new_id
from mamushka.engine.workload import Connection
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.network import ipam
from mamushka.network.address import parse, parse_subnet, unpack
from mamushka.network.network import DEFAULT_ROOT, Endpoint, Network, scope_of
from mamushka.values import EMPTY, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.engine.paths import Paths
    from mamushka.engine.state import State
    from mamushka.engine.workload import Workload
    from mamushka.network.address import Subnet

# Of the three that always exist; the words are Docker's.
DEFAULT, HOST, NONE = "bridge", "host", "none"
PREDEFINED = ((DEFAULT, "bridge"), (HOST, "host"), (NONE, "null"))
NAME_MAX = 255

SCHEMA = """
create table if not exists networks (
    id text primary key, name text not null unique, driver text not null, created real not null,
    subnet text not null, gateway text not null, subnet6 text not null, gateway6 text not null,
    ip_range text not null, internal integer not null, interface text not null,
    labels text not null, options text not null, last text not null default '') without rowid;
create table if not exists endpoints (
    workload text not null, network text not null, id text not null, wanted integer not null,
    requested text not null, requested6 text not null, aliases text not null, name text not null default '',
    address text not null default '', address6 text not null default '', mac text not null default '',
    interface text not null default '', primary key (workload, network)) without rowid;
create index if not exists endpoints_by_network on endpoints (network);
create table if not exists ports (
    workload text not null, address text not null, port integer not null, host_port integer not null,
    protocol text not null, host_address text not null);
create index if not exists ports_by_workload on ports (workload)
"""

_NETWORK = (
    "id, name, driver, created, subnet, gateway, subnet6, gateway6, "
    "ip_range, internal, interface, labels, options, last"
)
_ENDPOINT = "workload, network, id, wanted, requested, requested6, aliases, name, address, address6, mac, interface"


@value
class NetworkSummary:
    """One network."""

    id: str
    name: str
    driver: str  # bridge | host | null
    created: float
    subnet: str = ""  # "172.18.0.0/16"
    gateway: str = ""
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False
    interface: str = ""  # the bridge's name on the host
    labels: Mapping[str, str] = EMPTY
    options: Mapping[str, str] = EMPTY
    members: Mapping[str, Connection] = EMPTY  # running workloads by id


@value
class NetworkRow:
    """One row of ``networks``."""

    id: str
    name: str
    driver: str
    created: float
    subnet: str
    gateway: str
    subnet6: str
    gateway6: str
    ip_range: str
    internal: int
    interface: str
    labels: str
    options: str
    last: str  # the address given out last

    def network(self) -> Network:
        """What the network room is told."""
        options = document.parse(self.options.encode(), "options")
        return Network(
            id=self.id,
            bridge=self.interface,
            subnet=self.subnet,
            gateway=self.gateway,
            subnet6=self.subnet6,
            gateway6=self.gateway6,
            internal=bool(self.internal),
            masquerade=options.get(OPTION_MASQUERADE, "true") != "false",
            metadata=options.get(OPTION_METADATA, "false") == "true",
            mtu=int(options.get(OPTION_MTU, 0)),
        )


OPTION_BRIDGE = "com.docker.network.bridge.name"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_METADATA = "mamushka.metadata"  # "true": workloads may ask the cloud's metadata service


@value
class EndpointRow:
    """One row of ``endpoints``: a workload's wish to be in a network and, while it runs, its place there."""

    workload: str
    network: str
    id: str
    wanted: int  # 0: it was taken out of a network that its settings name
    requested: str = ""
    requested6: str = ""
    aliases: str = "[]"
    name: str = ""  # the workload's
    address: str = ""
    address6: str = ""
    mac: str = ""
    interface: str = ""

    def endpoint(self) -> Endpoint:
        """What the network room is told."""
        return Endpoint(self.id, self.address, self.address6, self.mac, self.interface)


def connection(network: NetworkRow, row: EndpointRow) -> Connection:
    """A workload's place, as the outside is told of it."""
    return Connection(
        network=network.name,
        network_id=network.id,
        address=row.address,
        prefix=parse_subnet(network.subnet).prefix if row.address else 0,
        gateway=network.gateway,
        address6=row.address6,
        prefix6=parse_subnet(network.subnet6).prefix if row.address6 else 0,
        gateway6=network.gateway6,
        mac=row.mac,
        aliases=tuple(document.parse(row.aliases.encode(), "aliases")),
    )


class Networks:
    """All networks of this host; bridge, host and none always exist.

    ``lookup`` finds a workload by name, id or prefix; connect and disconnect ask it whether that one runs.
    """

    def __init__(self, state: State, paths: Paths, lookup: Callable[[str], Workload]) -> None:
        self.state = state
        self.paths = paths
        self.scope = scope_of(paths.data)
        self._lookup = lookup
        self._ready = False

    def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        subnet: str = "",
        gateway: str = "",
        ip_range: str = "",
        subnet6: str = "",
        internal: bool = False,
        labels: Mapping[str, str] = EMPTY,
        options: Mapping[str, str] = EMPTY,
    ) -> NetworkSummary:
        """A new network; without a subnet the next free one of the pools. Unsupported for an ordinary user."""
        _need_root(f"make the network {name}")
        if ":" in subnet:
            subnet, subnet6 = "", subnet6 or subnet
        if driver != "bridge":
            raise Invalid(f"network driver {driver!r} is not known", hint="bridge is")
        _check_name(name)
        self.ready()
        id = new_id()
        interface = options.get(OPTION_BRIDGE) or f"mk-{id[:12]}"
        _check_options(interface, options)
        with self.state.transaction():
            if self.state.execute("select 1 from networks where name=?", (name,)).fetchone():
                raise Conflict(f"network with name {name} already exists", hint="choose another name")
            chosen = _plan(self._subnets_in_use(), subnet, gateway, ip_range, subnet6, self._pools())
            self._insert(id, name, "bridge", (*chosen, int(internal)), interface, labels, options)
            self.event("create", id, name=name, type="bridge")
        return self.get(id)

    def get(self, identifier: str) -> NetworkSummary:
        """By name, id or unique prefix."""
        return self._summary(self.find(identifier))

    def networks(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[NetworkSummary]:
        """All of them, by name. Filters: name and id (parts of them), driver, label, type, dangling."""
        self.ready()
        rows = self.state.execute(f"select {_NETWORK} from networks order by name")
        found = [self._summary(NetworkRow(*row)) for row in rows]
        return [summary for summary in found if _matches(summary, filters or EMPTY)]

    def remove(self, identifier: str) -> None:
        """Conflict while workloads are in it, or for the three that always exist."""
        row = self.find(identifier)
        if row.name in dict(PREDEFINED):
            raise Conflict(f"{row.name} is a pre-defined network and cannot be removed")
        with self.state.transaction():
            users = self._rows("where network=? and address!=''", row.id)
            if users:
                raise Conflict(
                    f"error while removing network: network {row.name} has active endpoints",
                    hint=f"disconnect or stop {', '.join(user.name or user.workload[:12] for user in users)} first",
                )
            self.state.execute("delete from endpoints where network=?", (row.id,))
            self.state.execute("delete from networks where id=?", (row.id,))
            self._forget_names(row.id)
            self.event("destroy", row.id, name=row.name, type=row.driver)

    def connect(self, network: str, workload: str, *, aliases: Sequence[str] = (), address: str = "") -> None:
        """Put a workload, running or not, into one more network."""
        _need_root(f"connect {workload} to {network}")
        from mamushka.engine import entering

        entering.connect(self, self.find(network), self._lookup(workload), tuple(aliases), address)

    def disconnect(self, network: str, workload: str, *, force: bool = False) -> None:
        """Take it out again."""
        _need_root(f"disconnect {workload} from {network}")
        from mamushka.engine import entering

        entering.disconnect(self, self.find(network), self._lookup(workload), force)

    def prune(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[str]:
        """Remove user-made networks that nobody is in; their names."""
        from mamushka.engine import pruning

        removed = []
        fits, rest = pruning.split(filters or {})
        for summary in self.networks(filters=rest):
            if not fits(summary.created, summary.labels):
                continue
            wanted = self.state.execute("select 1 from endpoints where network=? limit 1", (summary.id,)).fetchone()
            if summary.driver == "bridge" and summary.name != DEFAULT and not wanted:
                self.remove(summary.id)
                removed.append(summary.name)
        return removed

    # for the engine's own rooms

    def ready(self) -> None:
        """Make the tables, and the networks that always exist."""
        if self._ready:
            return
        self.state.schema(SCHEMA)
        if not self.state.execute("select 1 from networks where name=?", (DEFAULT,)).fetchone():
            with self.state.transaction():
                self._predefine()
        self._ready = True

    def find(self, identifier: str) -> NetworkRow:
        """A row by name, id or unique prefix. NotFound, or Conflict where the prefix is ambiguous."""
        self.ready()
        select = f"select {_NETWORK} from networks"
        rows = self.state.execute(f"{select} where name=? or id=? limit 1", (identifier, identifier)).fetchall()
        if not rows and is_hex(identifier):
            within = (identifier, identifier + "g")
            rows = self.state.execute(f"{select} where id >= ? and id < ? limit 2", within).fetchall()
        if not rows:
            raise NotFound(f"network {identifier} not found", hint="`mamushka network ls` lists them")
        if len(rows) > 1:
            raise Conflict(f"the id prefix {identifier} is ambiguous", hint="give more digits of it")
        return NetworkRow(*rows[0])

    def endpoints(self, workload: str) -> list[EndpointRow]:
        """All wishes and places of one workload."""
        self.ready()
        return self._rows("where workload=? order by interface", workload)

    def members(self, network: str) -> list[EndpointRow]:
        """Who has an address in a network."""
        return self._rows("where network=? and address!=''", network)

    def running(self) -> list[EndpointRow]:
        """Every place that is taken."""
        self.ready()
        return self._rows("where address!=''")

    def place(self, network: NetworkRow, row: EndpointRow) -> EndpointRow:
        """Give an endpoint its addresses and keep the row; inside a transaction."""
        address, address6 = self._allocate(network, row)
        placed = replace(row, address=address, address6=address6, mac=row.mac or ipam.mac_of(address))
        self.keep(placed)
        if not row.requested:
            self.state.execute("update networks set last=? where id=?", (address, network.id))
        return placed

    def keep(self, row: EndpointRow) -> None:
        """Write an endpoint's row, new or changed."""
        fields = tuple(getattr(row, name) for name in EndpointRow.__match_args__)
        marks = ",".join("?" * len(fields))
        self.state.execute(f"insert or replace into endpoints ({_ENDPOINT}) values ({marks})", fields)

    def _allocate(self, network: NetworkRow, row: EndpointRow) -> tuple[str, str]:
        pairs = "select address, address6 from endpoints where network=? and address!=''"
        taken = self.state.execute(pairs, (network.id,)).fetchall()
        subnet = parse_subnet(network.subnet)
        ip_range = parse_subnet(network.ip_range) if network.ip_range else None
        address = ipam.allocate(
            subnet,
            {parse(network.gateway), *(parse(address) for address, _ in taken)},
            requested=row.requested,
            ip_range=ip_range,
            after=parse(network.last) if network.last else 0,
        )
        if not network.subnet6:
            return address, ""
        subnet6 = parse_subnet(network.subnet6)
        taken6 = {parse(network.gateway6), *(parse(address6) for _, address6 in taken if address6)}
        return address, ipam.allocate(subnet6, taken6, requested=row.requested6)

    def _rows(self, tail: str, *values: object) -> list[EndpointRow]:
        return [EndpointRow(*row) for row in self.state.execute(f"select {_ENDPOINT} from endpoints {tail}", values)]

    def _summary(self, row: NetworkRow) -> NetworkSummary:
        return NetworkSummary(
            id=row.id,
            name=row.name,
            driver=row.driver,
            created=row.created,
            subnet=row.subnet,
            gateway=row.gateway,
            subnet6=row.subnet6,
            gateway6=row.gateway6,
            internal=bool(row.internal),
            interface=row.interface,
            labels=document.parse(row.labels.encode(), "labels"),
            options=document.parse(row.options.encode(), "options"),
            members={member.workload: connection(row, member) for member in self.members(row.id)},
        )

    def _predefine(self) -> None:
        chosen = _plan(self._subnets_in_use(), "", "", "", "", self._pools())
        for name, driver in PREDEFINED:
            settings = (*chosen, 0) if name == DEFAULT else ("", "", "", "", "", 0)
            interface = self.scope.bridge if name == DEFAULT else ""
            self._insert(new_id(), name, driver, settings, interface, EMPTY, EMPTY)

    def _insert(
        self,
        id: str,
        name: str,
        driver: str,
        settings: tuple[str | int, ...],
        interface: str,
        labels: Mapping[str, str],
        options: Mapping[str, str],
    ) -> None:
        from time import time

        told = document.dump(dict(labels)).decode(), document.dump(dict(options)).decode()
        fields = (id, name, driver, time(), *settings, interface, *told, "")
        marks = ",".join("?" * len(fields))
        self.state.execute(f"insert or ignore into networks ({_NETWORK}) values ({marks})", fields)

    def make_way(self, network: NetworkRow) -> NetworkRow:
        """The network as it can be brought up now: the host may have got routes that overlap it meanwhile.

        The default network moves elsewhere; one whose addresses a user relies on is a Conflict. Inside a
        transaction, and without effect once somebody is in the network.
        """
        taken = "select 1 from endpoints where network=? and address!='' limit 1"
        if self.state.execute(taken, (network.id,)).fetchone():
            return network
        routed = self._routed_elsewhere(unless=network.interface)
        wanted = [parse_subnet(text) for text in (network.subnet, network.subnet6) if text]
        clash = next((other for other in routed for subnet in wanted if subnet.overlaps(other)), None)
        if clash is None:
            return network
        if network.name != DEFAULT:
            raise Conflict(
                f"network {network.name} has the subnet {network.subnet}, and this host has a route to {clash} by now",
                hint="remove the other link, or make the network anew with another --subnet",
            )
        subnet, gateway, *_ = _plan([*self._subnets_of_others(network.id), *routed], "", "", "", "", self._pools())
        self.state.execute("update networks set subnet=?, gateway=?, last='' where id=?", (subnet, gateway, network.id))
        return self.find(network.id)

    def _subnets_in_use(self) -> list[Subnet]:
        """Those of every network, and whatever the host has routes to."""
        return [*self._subnets_of_others(""), *self._routed_elsewhere()]

    def _subnets_of_others(self, id: str) -> list[Subnet]:
        rows = self.state.execute("select subnet, subnet6 from networks where id!=?", (id,))
        return [parse_subnet(text) for row in rows for text in row if text]

    def _routed_elsewhere(self, *, unless: str = "") -> list[Subnet]:
        """What the host reaches by links that are not ours; nothing where a link ``unless`` stands already."""
        from mamushka.linux.rtnetlink import AF_INET, AF_INET6, find_link, links, open_route, routes

        used = []
        with open_route() as route:
            if unless and find_link(route, unless) is not None:
                return []
            ours = {link.index for link in links(route) if link.group == self.scope.group}
            for family in (AF_INET, AF_INET6):
                for entry in routes(route, family):
                    if entry.prefix and entry.index not in ours:
                        address = unpack(int.from_bytes(entry.destination, "big"), len(entry.destination) * 8)
                        used.append(parse_subnet(f"{address}/{entry.prefix}", strict=False))
        return used

    def _forget_names(self, id: str) -> None:
        from mamushka.engine.plugging import directory_path

        try:
            os.unlink(directory_path(self.paths, id))
        except FileNotFoundError:  # nobody was ever in it
            pass

    def _pools(self) -> tuple[tuple[str, int], ...]:
        """Engines with other roots begin elsewhere, so that two on one host seldom meet."""
        pools = ipam.DEFAULT_POOLS
        turn = 0 if self.scope == scope_of(DEFAULT_ROOT) else self.scope.group % len(pools)
        return (*pools[turn:], *pools[:turn])

    def event(self, action: str, id: str, **attributes: str) -> None:
        """Tell whoever watches."""
        from time import time

        self.state.add_event(time(), "network", action, id, dict(attributes))


def _plan(
    used: list[Subnet], subnet: str, gateway: str, ip_range: str, subnet6: str, pools: Sequence[tuple[str, int]]
) -> tuple[str, str, str, str, str]:
    """(subnet, gateway, subnet6, gateway6, ip_range) of a new network, checked against each other."""
    chosen = ipam.check_subnet(subnet, used) if subnet else ipam.choose_subnet(used, pools)
    if gateway and parse(gateway) not in chosen:
        raise Invalid(f"gateway {gateway} is not in the subnet {chosen}")
    if ip_range:
        inner = parse_subnet(ip_range)
        if inner.bits != chosen.bits or inner.base not in chosen or inner.last not in chosen:
            raise Invalid(f"ip range {inner} is not in the subnet {chosen}")
    gateway = gateway or unpack(ipam.first_host(chosen), chosen.bits)
    if not subnet6:
        return str(chosen), gateway, "", "", ip_range
    chosen6 = ipam.check_subnet(subnet6, used)
    return str(chosen), gateway, str(chosen6), unpack(ipam.first_host(chosen6), chosen6.bits), ip_range


def _check_name(name: str) -> None:
    if not name or len(name) > NAME_MAX or "/" in name or not name.isprintable() or name.startswith("container:"):
        raise Invalid(f"invalid network name: {name!r}", hint="one to 255 printable characters, none of them a slash")
    if name in dict(PREDEFINED) or name == "default":
        raise Conflict(f"operation is not permitted on predefined {name} network")


def _check_options(interface: str, options: Mapping[str, str]) -> None:
    from mamushka.linux.rtnetlink import IFNAMSIZ

    if len(interface) >= IFNAMSIZ or "/" in interface or interface in (".", "..") or interface.split() != [interface]:
        raise Invalid(f"{interface!r} cannot be the name of a link", hint="up to 15 characters, no slash or space")
    mtu = options.get(OPTION_MTU, "1500")
    if not mtu.isascii() or not mtu.isdigit() or not 68 <= int(mtu) <= 65535:
        raise Invalid(f"{OPTION_MTU}={mtu!r} is not a link's size", hint="a number from 68 to 65535")


def _matches(summary: NetworkSummary, filters: Mapping[str, Sequence[str]]) -> bool:
    tests: dict[str, Callable[[str], bool]] = {
        "name": lambda want: want in summary.name,
        "id": lambda want: summary.id.startswith(want),
        "driver": lambda want: want == summary.driver,
        "label": lambda want: _labelled(summary.labels, want),
        "type": lambda want: (want == "custom") == (summary.name not in dict(PREDEFINED)),
        "dangling": lambda want: (want in ("1", "true")) == (not summary.members),
    }
    for key, wanted in filters.items():
        if key not in tests:
            raise Invalid(f"invalid filter: {key!r}", hint=f"one of {', '.join(sorted(tests))}")
        met = [tests[key](want) for want in wanted]
        if not (all(met) if key == "label" else any(met)):
            return False
    return True


def _labelled(labels: Mapping[str, str], want: str) -> bool:
    name, equals, content = want.partition("=")
    return name in labels and (not equals or labels[name] == content)


def _need_root(what: str) -> None:
    from mamushka.linux.process import initial

    if not initial():
        from mamushka.engine.outward import refuse

        raise refuse(what)
