"""A running workload's names: it has them from the moment at which it enters its first network that has any.

Who starts in such a network has them from the beginning (wiring.py). Here the shim is told to answer, and the file that
says where to ask is written anew, in place, since it is mounted. One that the workload has changed stays as it is.
"""

from __future__ import annotations

import os

from mamushka import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.networks import Networks
    from mamushka.engine.workload import Workload


def give(networks: Networks, workload: Workload, *, outward: bool) -> None:
    """Have 127.0.0.11 answer, and for names of the world where the workload has a way ``outward``.

    Harmless where it answers already. What a killed shim would do is done by the next start.
    """
    from mamushka.engine import attach, frames, machine_cards, plugging, wiring
    from mamushka.network import names

    settings, host = workload.settings, wiring.resolvers()
    path = f"{workload.directory}/resolv.conf"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            known = names.nameservers(file.read())
    except FileNotFoundError:  # its root has no such file of ours
        return
    if names.RESPONDER in known:
        return
    if os.stat(path).st_mtime > workload.started:
        trace.event("names.changed", id=workload.id)
        return
    servers = tuple(settings.dns or names.nameservers(host)) if outward else ()
    connection = attach.connect(workload.id, networks.paths.shims, 0, at_end=lambda: None)
    if connection is None:
        trace.event("workload.shim_lost", id=workload.id)
        return
    with connection:
        connection.ask(frames.names(plugging.index_path(networks.paths, workload.id), servers))
    text = names.resolv_conf(
        host, responder=True, servers=settings.dns, search=settings.dns_search, options=settings.dns_options
    )
    machine_cards.give_names(networks.paths, workload, text)
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
