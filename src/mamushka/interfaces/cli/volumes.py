"""The verbs of ``volume``."""

from __future__ import annotations

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.confirm import PRUNE, confirmed, reclaimed
from mamushka.interfaces.cli.lifecycle import each
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.output import out, talk
from mamushka.interfaces.cli.table import FILTER, FORMAT, filters, show
from mamushka.interfaces.docker import environment
from mamushka.interfaces.docker import volume as dialect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

HEADERS = {
    "Driver": "DRIVER", "Name": "VOLUME NAME", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS",
    "Links": "LINKS", "Size": "SIZE", "Availability": "AVAILABILITY", "Group": "GROUP", "Status": "STATUS",
}  # fmt: skip


def create(arguments: Arguments, session: Session) -> int:
    """Make one and print its name."""
    name = arguments.operands[0] if arguments.operands else arguments.name
    if arguments.driver != "local":
        raise Invalid(f"the volume driver {arguments.driver!r} is not known", hint="there is only local")
    made = session.engine.volumes.create(name, labels=dict(arguments.label), options=dict(arguments.opt))
    out(made.name)
    return 0


def listing(arguments: Arguments, session: Session) -> int:
    """``volume ls``."""
    found = session.engine.volumes.volumes(filters=filters(arguments.filter))
    if arguments.quiet:
        for volume in found:
            out(volume.name)
        return 0
    show([dialect.row(volume) for volume in found], HEADERS, arguments.format, "Driver Name")
    return 0


def remove(arguments: Arguments, session: Session) -> int:
    """``volume rm``; forced, what is not there is no failure."""

    def act(name: str) -> None:
        try:
            session.engine.volumes.remove(name, force=arguments.force)
        except NotFound as error:
            if not arguments.force:
                raise
            talk(str(error))

    return each(arguments.operands, act)


def prune(arguments: Arguments, session: Session) -> int:
    """``volume prune``."""
    which = "all" if arguments.all else "all anonymous"
    if not confirmed(arguments, f"This will remove {which} volumes that no workload uses."):
        return 1
    removed, freed = session.engine.volumes.prune(all=arguments.all, filters=filters(arguments.filter))
    reclaimed("Deleted Volumes:", removed, freed)
    return 0


COMMANDS = {
    "volume create": Command(
        create,
        "[VOLUME]",
        (
            one("-d, --driver", "The driver", default="local"),
            many("--label", "Set a label: key=value", convert=environment.pair),
            one("--name", "Its name"),
            many("-o, --opt", "Set an option of the driver: key=value", "map", convert=environment.pair),
        ),
        maximum=1,
    ),
    "volume ls": Command(listing, "", (FILTER, FORMAT, flag("-q, --quiet", "Print names only")), maximum=0),
    "volume rm": Command(
        remove,
        "VOLUME [VOLUME...]",
        (flag("-f, --force", "What is not there is no failure"),),
        minimum=1,
        complete="volume",
    ),
    "volume prune": Command(prune, "", (flag("-a, --all", "Also those with a name"), *PRUNE), maximum=0),
}
