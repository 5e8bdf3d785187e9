"""A running machine's cards: one for each network that its workload enters, gone with each that it leaves.

A link into the workload's namespace is all that a container needs. A machine's monitor has left that namespace
(cage.py) and keeps a descriptor of it: there the link is wired to a tap, and the monitor is given that.
"""

from __future__ import annotations

import os

from mamushka.errors import Conflict, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.paths import Paths
    from mamushka.engine.workload import Workload

_NETWORK = "net:["


def namespace(workload: Workload) -> int:
    """A descriptor of the network namespace of a running workload, behind whichever wall."""
    if workload.runtime != "vm":
        return os.open(f"/proc/{workload.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    held = f"/proc/{workload.pid}/fd"
    for name in os.listdir(held):
        try:
            if os.readlink(f"{held}/{name}").startswith(_NETWORK):
                return os.open(f"{held}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # closed meanwhile
            continue
    raise Conflict(
        f"the machine of {workload.name} was made without a network, so it has no place for a card",
        hint="make it with --network NAME",
    )


def plug(paths: Paths, workload: Workload, namespace: int, interface: str) -> None:
    """Tie an interface of the workload's namespace to a card of its machine; for a container there is nothing to do."""
    if workload.runtime != "vm":
        return
    from mamushka.engine.machines import open_machines, wire
    from mamushka.network import tap

    joined = tap.join(namespace, interface)
    made = wire(joined)
    try:
        open_machines(paths.machines).plug(workload.id, made.tap, made.mac, made.mtu, made.link(made.mac))
    except BaseException:
        os.close(made.tap)
        joined.undo()
        raise
    os.close(made.tap)


def give_names(paths: Paths, workload: Workload, resolv_conf: str) -> None:
    """Have a machine's programs ask where ``resolv_conf`` says, which is 127.0.0.11; nothing to do for a container."""
    if workload.runtime != "vm":
        return
    from mamushka.engine.machines import open_machines, resolver

    inside = namespace(workload)
    try:
        sockets = resolver(inside, resolv_conf)
    finally:
        os.close(inside)
    try:
        open_machines(paths.machines).give_names(workload.id, sockets, resolv_conf)
    finally:
        for fd in sockets:
            os.close(fd)


def unplug(paths: Paths, workload: Workload, mac: str) -> None:
    """Take the card of a network out, before its link goes; harmless where there is none, or no machine any more."""
    if workload.runtime != "vm" or not workload.pid:
        return
    from mamushka.engine.machines import open_machines
    from mamushka.network.address import hardware
    from mamushka.runtime import NotRunning

    try:
        open_machines(paths.machines).unplug(workload.id, hardware(mac))
    except (NotFound, NotRunning):
        pass
