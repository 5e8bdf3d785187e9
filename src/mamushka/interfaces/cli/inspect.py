"""``inspect``, and its forms for one kind of thing."""

from __future__ import annotations

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import complain, out
from mamushka.interfaces.docker.template import Template
from mamushka.interfaces.docker.template_functions import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from mamushka.engine.workload import Workload
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

    Look = Callable[[Session, str], dict[str, Any]]


def _container(session: Session, name: str) -> dict[str, Any]:
    from mamushka.engine import figures
    from mamushka.interfaces.docker import container

    workload = session.engine.inspect(name)
    document = container.inspect(workload, _places(session, workload))
    began = figures.began(session.engine, workload)
    if began:
        document["Runtime"]["Began"] = began
    return document


def _places(session: Session, workload: Workload) -> dict[str, str]:
    """Where the workload's volumes lie; one that was removed by force lies nowhere."""
    names = [volume for _, volume in workload.volumes]
    names += [mount.source for mount in workload.settings.mounts if mount.kind == "volume" and mount.source]
    places = {}
    for name in names:
        try:
            places[name] = session.engine.volumes.get(name).path
        except NotFound:
            continue
    return places


def _sized(session: Session, document: dict[str, Any]) -> dict[str, Any]:
    """With --size, how much a workload's writable top holds."""
    if "State" not in document:
        return document
    usage: Mapping[str, Any] = session.engine.disk_usage()
    return {**document, "SizeRw": usage["workload_sizes"].get(document["Id"], 0)}


def _image(session: Session, name: str) -> dict[str, Any]:
    from mamushka.interfaces.docker import image

    return image.inspect(session.engine.images.get(name))


def _network(session: Session, name: str) -> dict[str, Any]:
    from mamushka.interfaces.docker import network

    return network.inspect(session.engine.networks.get(name))


def _volume(session: Session, name: str) -> dict[str, Any]:
    from mamushka.interfaces.docker import volume

    return volume.inspect(session.engine.volumes.get(name))


# In Docker's order: the first kind that knows the name answers.
_KINDS: dict[str, Look] = {"container": _container, "image": _image, "network": _network, "volume": _volume}


def inspect(arguments: Arguments, session: Session) -> int:
    """Anything, by name or id."""
    chosen = arguments.type
    if chosen and chosen not in _KINDS:
        raise Invalid(f"--type {chosen!r} is not known", hint=", ".join(_KINDS))
    return _show(arguments, session, (chosen,) if chosen else tuple(_KINDS))


def _only(kind: str) -> Callable[[Arguments, Session], int]:
    return lambda arguments, session: _show(arguments, session, (kind,))


def _show(arguments: Arguments, session: Session, kinds: tuple[str, ...]) -> int:
    """Documents of what is found go out even where another name is not found."""
    template = Template(arguments.format) if arguments.format not in ("", "json") else None
    found, failed = [], 0
    for name in arguments.operands:
        try:
            document = _look(session, name, kinds)
            found.append(_sized(session, document) if arguments.__dict__.get("size") else document)
        except NotFound as error:
            complain(str(error), error.hint)
            failed = 1
    if template:
        for document in found:
            out(template.render(document))
    elif arguments.format == "json":
        out(to_json(found))
    else:
        import json

        out(json.dumps(found, indent=4, ensure_ascii=False))
    return failed


def _look(session: Session, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    for kind in kinds:
        try:
            return _KINDS[kind](session, name)
        except (NotFound, Invalid):
            if len(kinds) == 1:
                raise
    raise NotFound(f"there is nothing called {name!r}", hint="mamushka ps -a and mamushka images list what there is")


_SIZE = flag("-s, --size", "Also show how much a workload's top holds")
_FORMAT = one("-f, --format", "json, or a Go template", "format", complete="json")
COMMANDS = {
    "inspect": Command(
        inspect,
        "NAME|ID [NAME|ID...]",
        (_FORMAT, _SIZE, one("--type", "Only this kind of thing", "kind", complete="|".join(_KINDS))),
        minimum=1,
        complete="container",
    ),
    "network inspect": Command(_only("network"), "NETWORK [NETWORK...]", (_FORMAT,), minimum=1, complete="network"),
    "volume inspect": Command(_only("volume"), "VOLUME [VOLUME...]", (_FORMAT,), minimum=1, complete="volume"),
    "image inspect": Command(_only("image"), "IMAGE [IMAGE...]", (_FORMAT,), minimum=1, complete="image"),
    "container inspect": Command(
        _only("container"), "WORKLOAD [WORKLOAD...]", (_FORMAT, _SIZE), minimum=1, complete="container"
    ),
}
