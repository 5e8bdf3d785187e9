"""A running workload enters one more network, and leaves one: a link, a card where it is a machine, and its names.

What stands for its start and its end is in plugging.py; a place that was taken here goes with its next end, as all do.
"""

from __future__ import annotations

import os

from mamushka.engine import plugging
from mamushka.engine.networks import DEFAULT
from mamushka.errors import Conflict, NotFound
from mamushka.linux.flock import Lock
from mamushka.linux.nftables import Nftables
from mamushka.linux.rtnetlink import open_route
from mamushka.network import endpoint
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.networks import EndpointRow, NetworkRow, Networks
    from mamushka.engine.settings import Attachment
    from mamushka.engine.workload import Workload


def connect(
    networks: Networks, network: NetworkRow, workload: Workload, aliases: tuple[str, ...], address: str
) -> None:
    """See Networks.connect."""
    from mamushka.engine.settings import Attachment

    rows = networks.endpoints(workload.id)
    if any(item.network in ("none", "host") or ":" in item.network for item in workload.settings.networks):
        raise Conflict(
            f"container {workload.name} has no network of its own, so it cannot be connected to {network.name}"
        )
    if any(row.network == network.id and row.wanted for row in rows):
        raise Conflict(f"endpoint with name {workload.name} already exists in network {network.name}")
    wished = plugging.wish(workload, network, Attachment(network.name, aliases, address))
    if not workload.pid:
        networks.keep(wished)
        return
    number = 1 + max((int(row.interface[3:] or -1) for row in rows if row.interface), default=-1)
    with networks.state.transaction():
        network = networks.make_way(network)
        placed = networks.place(network, replace(wished, interface=f"eth{number}"))
        plugging.tell_names(networks, workload.id, [(network, placed)])
    has_way_out = _has_way_out(networks, rows)
    try:
        _enter(networks, workload, (network, placed), default_route=not has_way_out)
        if network.name != DEFAULT:
            _give_names(networks, workload, placed, outward=has_way_out or not network.internal)
    except BaseException:
        _drop(networks, network, placed)
        raise
    networks.event("connect", network.id, container=workload.id, name=network.name, type=network.driver)


def _enter(
    networks: Networks, workload: Workload, place: tuple[NetworkRow, EndpointRow], *, default_route: bool
) -> None:
    """Plug a link into a running workload, and a card into its machine."""
    from mamushka.engine import machine_cards

    namespace = machine_cards.namespace(workload)
    try:
        with Lock(plugging.lock_path(networks.paths), shared=True), open_route() as route, Nftables() as filter:
            plugging.plug_in(networks, route, filter, place, namespace, default_route)
        try:  # without the lock: a guest may take its time
            machine_cards.plug(networks.paths, workload, namespace, place[1].interface)
        except BaseException:
            _unlink(place[1])
            raise
    finally:
        os.close(namespace)


def _give_names(networks: Networks, workload: Workload, row: EndpointRow, *, outward: bool) -> None:
    """Its names; where it cannot have them it is taken out again."""
    from mamushka.engine import naming

    try:
        naming.give(networks, workload, outward=outward)
    except BaseException:
        _take_out(networks, workload, row)
        raise


def _take_out(networks: Networks, workload: Workload, row: EndpointRow) -> None:
    """The card of its machine, and the link."""
    from mamushka.engine import machine_cards

    machine_cards.unplug(networks.paths, workload, row.mac)
    _unlink(row)


def _unlink(row: EndpointRow) -> None:
    with open_route() as route:
        endpoint.disconnect(route, row.endpoint())


def _has_way_out(networks: Networks, rows: list[EndpointRow]) -> bool:
    return any(not networks.find(row.network).internal for row in rows if row.address)


def disconnect(networks: Networks, network: NetworkRow, workload: Workload, force: bool) -> None:
    """See Networks.disconnect."""
    row = next((row for row in networks.endpoints(workload.id) if row.network == network.id and row.wanted), None)
    named = any(networks.find(plugging.name_of(item.network)).id == network.id for item in workload.settings.networks)
    if row is None and not named:
        if force:
            return
        raise NotFound(f"container {workload.id} is not connected to network {network.name}")
    row = row or plugging.wish(workload, network, _attachment(network))
    if row.address:
        _take_out(networks, workload, row)
    _drop(networks, network, row, wanted=not named)
    networks.event("disconnect", network.id, container=workload.id, name=network.name, type=network.driver)


def _attachment(network: NetworkRow) -> Attachment:
    from mamushka.engine.settings import Attachment

    return Attachment(network.name)


def _drop(networks: Networks, network: NetworkRow, row: EndpointRow, *, wanted: bool = True) -> None:
    """Forget a place; or, where the settings name the network, remember that it is not wanted."""
    with networks.state.transaction() as state:
        if wanted:
            state.execute("delete from endpoints where workload=? and network=?", (row.workload, row.network))
        else:
            networks.keep(replace(row, wanted=0, address="", address6="", mac="", interface=""))
        plugging.tell_names(networks, row.workload, [(network, row)])
