"""Verbs about the whole: version, info, events, system df, system prune."""

from __future__ import annotations

import os
import sys

from mamushka.errors import Invalid
from mamushka.interfaces.cli.confirm import confirmed, reclaimed
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.output import out, printable
from mamushka.interfaces.cli.table import FILTER, FORMAT, filters, show
from mamushka.interfaces.docker import units
from mamushka.interfaces.docker.container import LIVING, row
from mamushka.interfaces.docker.image import rows as image_rows
from mamushka.interfaces.docker.template import Template
from mamushka.interfaces.docker.template_functions import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

_DF = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}


def version_line() -> str:
    """``mamushka --version``."""
    return f"mamushka version {_version()}"


def _version() -> str:
    # Not imported by name: the package's door is the Python API's, which is a stranger to this room.
    return str(sys.modules["mamushka"].__dict__["__version__"])


def version(arguments: Arguments, session: Session) -> int:
    """``version``: what this program is and stands on."""
    host = os.uname()
    facts = {
        "Version": _version(),
        "Python": sys.version.split()[0],
        "OS/Arch": f"{sys.platform}/{host.machine}",
        "Kernel": host.release,
    }
    # Docker's clients ask for these two halves; here one process is both.
    document = {"Client": facts, "Server": facts}
    if arguments.format == "json":
        out(to_json(document))
    elif arguments.format:
        out(Template(arguments.format).render(document))
    else:
        out("Mamushka")
        for name, fact in facts.items():
            out(f" {name + ':':<12}{fact}")
    return 0


def info(arguments: Arguments, session: Session) -> int:
    """``info``."""
    facts = session.engine.information()
    if arguments.format == "json":
        out(to_json(facts))
    elif arguments.format:
        out(Template(arguments.format).render(facts))
    else:
        # What each wall's kernel interface offers is long, and for programs: --format json has it.
        for line in _outline({name: fact for name, fact in facts.items() if name != "features"}):
            out(printable(line))
    return 0


def _outline(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested facts as indented lines."""
    for name, fact in facts.items():
        title = name.replace("_", " ")
        if hasattr(fact, "keys"):
            yield f"{indent}{title}:"
            yield from _outline(fact, indent + " ")
        elif isinstance(fact, list | tuple):
            yield f"{indent}{title}: {', '.join(str(item) for item in fact)}"
        else:
            yield f"{indent}{title}: {str(fact).lower() if isinstance(fact, bool) else fact}"


def events(arguments: Arguments, session: Session) -> int:
    """``events``: until interrupted, or until the given moment."""
    from mamushka.interfaces.docker import event as dialect

    template = Template(arguments.format) if arguments.format not in ("", "json") else None
    stream = session.engine.events(
        since=units.moment(arguments.since), until=units.moment(arguments.until), filters=_event_filters(arguments)
    )
    for event in stream:
        if template:
            out(template.render(dialect.message(event)))
        elif arguments.format:
            out(to_json(dialect.message(event)))
        else:
            out(printable(dialect.line(event)))
        sys.stdout.flush()
    return 0


def _event_filters(arguments: Arguments) -> dict[str, tuple[str, ...]]:
    """Docker's word for a workload is container."""
    wanted = filters(arguments.filter)
    if "type" in wanted:
        wanted["type"] = tuple({"container": "workload"}.get(kind, kind) for kind in wanted["type"])
    return wanted


def disk(arguments: Arguments, session: Session) -> int:
    """``system df``."""
    usage: Mapping[str, Any] = session.engine.disk_usage()
    if arguments.verbose:
        _each_disk(usage)
    else:
        show(_usage_rows(usage), _DF, arguments.format)
    return 0


def _usage_rows(usage: Mapping[str, Any]) -> list[dict[str, str]]:
    workloads, images, volumes, sizes = (usage[key] for key in ("workloads", "images", "volumes", "volume_sizes"))
    taken = {workload.image_id for workload in workloads}
    idle = sum(sizes[volume.name] for volume in volumes if not volume.users)
    layers = usage["layers_size"], usage["layers_reclaimable"]
    tops = usage["workloads_size"], usage["workloads_reclaimable"]
    return [
        _usage_row("Images", len(images), sum(image.id in taken for image in images), *layers),
        _usage_row("Containers", len(workloads), sum(item.status in LIVING for item in workloads), *tops),
        _usage_row("Local Volumes", len(volumes), sum(bool(item.users) for item in volumes), sum(sizes.values()), idle),
    ]


def _each_disk(usage: Mapping[str, Any]) -> None:
    """A table of each kind; an image's size counts layers that it shares with others."""
    images = [row for image in usage["images"] for row in image_rows(image)]
    out("Images space usage:\n")
    show(images, {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "Size": "SIZE"}, "")
    tops = usage["workload_sizes"]
    rows = [row(workload, size=units.human_size(tops.get(workload.id, 0))) for workload in usage["workloads"]]
    out("\nContainers space usage:\n")
    show(rows, {"ID": "CONTAINER ID", "Image": "IMAGE", "Size": "SIZE", "Status": "STATUS", "Names": "NAMES"}, "")
    out("\nLocal Volumes space usage:\n")
    sizes = usage["volume_sizes"]
    volumes = [
        {"Name": volume.name, "Links": len(volume.users), "Size": units.human_size(sizes[volume.name])}
        for volume in usage["volumes"]
    ]
    show(volumes, {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}, "")


def _usage_row(title: str, count: int, active: int, size: int, free: int) -> dict[str, str]:
    share = f" ({100 * free // size}%)" if size else ""
    return {
        "Type": title,
        "TotalCount": str(count),
        "Active": str(active),
        "Size": units.human_size(size),
        "Reclaimable": units.human_size(free) + share,
    }


def prune(arguments: Arguments, session: Session) -> int:
    """``system prune``: workloads first, for they hold on to the rest."""
    engine, wanted = session.engine, filters(arguments.filter)
    if arguments.volumes and "until" in wanted:
        raise Invalid('the "until" filter is not supported with "--volumes"', hint="volumes have no age")
    what = ["all workloads that have ended", "all networks that nobody is in"]
    what.append("all images that no workload uses" if arguments.all else "all images without a name")
    what += ["all anonymous volumes that no workload uses"] if arguments.volumes else []
    if not confirmed(arguments, "This will remove " + ", ".join(what) + "."):
        return 1
    workloads, freed = engine.prune(filters=wanted)
    reclaimed("Deleted Containers:", workloads)
    reclaimed("Deleted Networks:", engine.networks.prune(filters=wanted))
    if arguments.volumes:
        volumes, size = engine.volumes.prune(filters=wanted)
        reclaimed("Deleted Volumes:", volumes)
        freed += size
    images, size = engine.images.prune(all=arguments.all, filters=wanted)
    reclaimed("Deleted Images:", [f"{action}: {name}" for action, name in images], freed + size)
    return 0


_FORMAT = one("-f, --format", "json, or a Go template", "format", complete="json")
COMMANDS = {
    "version": Command(version, "", (_FORMAT,), maximum=0),
    "info": Command(info, "", (_FORMAT,), maximum=0),
    "events": Command(
        events,
        "",
        (
            FILTER,
            one("--format", "json, or a Go template", "format", complete="json"),
            one("--since", "Start with what happened then: 2026-11-22T20:00:00Z, or 10m ago", "moment"),
            one("--until", "End there", "moment"),
        ),
        maximum=0,
    ),
    "system df": Command(disk, "", (FORMAT, flag("-v, --verbose", "Show each thing")), maximum=0),
    "system prune": Command(
        prune,
        "",
        (
            flag("-a, --all", "Also images with a name"),
            flag("-f, --force", "Do not ask"),
            flag("--volumes", "Also anonymous volumes"),
            many("--filter", "Only what fits: key=value", "filter"),
        ),
        maximum=0,
    ),
}
