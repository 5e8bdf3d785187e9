"""The verbs of ``network``."""

from __future__ import annotations

from mamushka.errors import NotFound
from mamushka.interfaces.cli.confirm import PRUNE, confirmed, reclaimed
from mamushka.interfaces.cli.lifecycle import each
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.output import out, talk
from mamushka.interfaces.cli.table import FILTER, FORMAT, filters, show
from mamushka.interfaces.docker import environment
from mamushka.interfaces.docker import network as dialect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

HEADERS = {
    "ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv6": "IPV6", "Internal": "INTERNAL",
    "Labels": "LABELS", "CreatedAt": "CREATED AT",
}  # fmt: skip


def create(arguments: Arguments, session: Session) -> int:
    """Make one and print its id."""
    subnets = {":" in subnet: subnet for subnet in arguments.subnet}
    made = session.engine.networks.create(
        arguments.operands[0],
        driver=arguments.driver,
        subnet=subnets.get(False, ""),
        subnet6=subnets.get(True, ""),
        gateway=arguments.gateway,
        ip_range=arguments.ip_range,
        internal=arguments.internal,
        labels=dict(arguments.label),
        options=dict(arguments.opt),
    )
    out(made.id)
    return 0


def listing(arguments: Arguments, session: Session) -> int:
    """``network ls``."""
    found = session.engine.networks.networks(filters=filters(arguments.filter))
    if arguments.quiet:
        for network in found:
            out(network.id if arguments.no_trunc else network.id[:12])
        return 0
    rows = [dialect.row(network, truncate=not arguments.no_trunc) for network in found]
    show(rows, HEADERS, arguments.format, "ID Name Driver Scope")
    return 0


def remove(arguments: Arguments, session: Session) -> int:
    """``network rm``; forced, what is not there is no failure."""

    def act(name: str) -> None:
        try:
            session.engine.networks.remove(name)
        except NotFound as error:
            if not arguments.force:
                raise
            talk(str(error))

    return each(arguments.operands, act)


def connect(arguments: Arguments, session: Session) -> int:
    """``network connect``."""
    network, workload = arguments.operands
    session.engine.networks.connect(network, workload, aliases=arguments.alias, address=arguments.ip)
    return 0


def disconnect(arguments: Arguments, session: Session) -> int:
    """``network disconnect``."""
    network, workload = arguments.operands
    session.engine.networks.disconnect(network, workload, force=arguments.force)
    return 0


def prune(arguments: Arguments, session: Session) -> int:
    """``network prune``."""
    if not confirmed(arguments, "This will remove all networks that nobody is in."):
        return 1
    reclaimed("Deleted Networks:", session.engine.networks.prune(filters=filters(arguments.filter)))
    return 0


COMMANDS = {
    "network create": Command(
        create,
        "NETWORK",
        (
            one("-d, --driver", "The driver", default="bridge"),
            one("--gateway", "The gateway's address", "address"),
            flag("--internal", "No way out of it"),
            one("--ip-range", "Give workloads addresses of this part only", "subnet"),
            many("--label", "Set a label: key=value", convert=environment.pair),
            many("-o, --opt", "Set an option of the driver: key=value", "map", convert=environment.pair),
            many("--subnet", "Addresses of the network: 10.9.0.0/24; one of IPv4, one of IPv6", "subnet"),
        ),
        minimum=1,
        maximum=1,
    ),
    "network ls": Command(
        listing,
        "",
        (FILTER, FORMAT, flag("--no-trunc", "Do not shorten"), flag("-q, --quiet", "Print ids only")),
        maximum=0,
    ),
    "network rm": Command(
        remove,
        "NETWORK [NETWORK...]",
        (flag("-f, --force", "What is not there is no failure"),),
        minimum=1,
        complete="network",
    ),
    "network connect": Command(
        connect,
        "NETWORK WORKLOAD",
        (many("--alias", "A further name in the network"), one("--ip", "Its address in the network", "address")),
        minimum=2,
        maximum=2,
        complete="network",
    ),
    "network disconnect": Command(
        disconnect,
        "NETWORK WORKLOAD",
        (flag("-f, --force", "Also where the workload is gone"),),
        minimum=2,
        maximum=2,
        complete="network",
    ),
    "network prune": Command(prune, "", PRUNE, maximum=0),
}
