"""Verbs about the images that are here: images, rmi, tag, history, prune."""

from __future__ import annotations

from mamushka.errors import MamushkaError
from mamushka.interfaces.cli.confirm import PRUNE, confirmed, reclaimed
from mamushka.interfaces.cli.options import Command, flag
from mamushka.interfaces.cli.output import complain, out
from mamushka.interfaces.cli.table import FILTER, FORMAT, filters, show
from mamushka.interfaces.docker import image as dialect
from mamushka.interfaces.docker.container import short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

HEADERS = {
    "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID", "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT", "Size": "SIZE", "VirtualSize": "SIZE", "Platform": "PLATFORM",
    "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}  # fmt: skip
_DEFAULT = "Repository Tag ID CreatedSince Size"
HISTORY = {
    "ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE",
    "Comment": "COMMENT",
}  # fmt: skip
_HISTORY_DEFAULT = "ID CreatedSince CreatedBy Size Comment"


def images(arguments: Arguments, session: Session) -> int:
    """``images``."""
    wanted = filters(arguments.filter)
    if arguments.operands:
        wanted["reference"] = (*wanted.get("reference", ()), arguments.operands[0])
    found = session.engine.images.images(all=arguments.all, filters=wanted)
    if arguments.quiet:
        for summary in dict.fromkeys(summary.id for summary in found):
            out(summary if arguments.no_trunc else short(summary))
        return 0
    rows = [row for summary in found for row in dialect.rows(summary, truncate=not arguments.no_trunc)]
    names = _DEFAULT.replace("Tag", "Tag Digest") if arguments.digests else _DEFAULT
    show(rows, HEADERS, arguments.format, names)
    return 0


def remove(arguments: Arguments, session: Session) -> int:
    """``rmi``."""
    failed = 0
    for name in arguments.operands:
        try:
            removed = session.engine.images.remove(name, force=arguments.force, prune=not arguments.no_prune)
        except MamushkaError as error:
            complain(str(error), error.hint)
            failed = 1
        else:
            for line in _removed(removed):
                out(line)
    return failed


def _removed(removed: list[tuple[str, str]]) -> list[str]:
    return [f"{what.capitalize()}: {name}" for what, name in removed]


def tag(arguments: Arguments, session: Session) -> int:
    """``tag``."""
    source, target = arguments.operands
    session.engine.images.tag(source, target)
    return 0


def history(arguments: Arguments, session: Session) -> int:
    """``history``."""
    steps = session.engine.images.history(arguments.operands[0])
    rows = [dialect.history_row(step, truncate=not arguments.no_trunc, human=arguments.human) for step in steps]
    if arguments.quiet:
        for row in rows:
            out(row["ID"])
        return 0
    show(rows, HISTORY, arguments.format, _HISTORY_DEFAULT)
    return 0


def prune(arguments: Arguments, session: Session) -> int:
    """``image prune``."""
    which = "that no workload uses" if arguments.all else "without a name that nothing uses"
    if not confirmed(arguments, f"This will remove all images {which}."):
        return 1
    removed, freed = session.engine.images.prune(all=arguments.all, filters=filters(arguments.filter))
    reclaimed("Deleted Images:", [f"{what.lower()}: {name}" for what, name in removed], freed)
    return 0


COMMANDS = {
    "images": Command(
        images,
        "[REPOSITORY[:TAG]]",
        (
            flag("-a, --all", "Show intermediate images too"),
            flag("--digests", "Show digests"),
            FILTER,
            FORMAT,
            flag("--no-trunc", "Do not shorten"),
            flag("-q, --quiet", "Print ids only"),
        ),
        maximum=1,
        complete="image",
    ),
    "rmi": Command(
        remove,
        "IMAGE [IMAGE...]",
        (flag("-f, --force", "Also where a workload uses it"), flag("--no-prune", "Keep parents without a name")),
        minimum=1,
        complete="image",
    ),
    "tag": Command(tag, "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", minimum=2, maximum=2, complete="image"),
    "history": Command(
        history,
        "IMAGE",
        (
            FORMAT,
            flag("-H, --human", "Sizes and dates for people", default=True),
            flag("--no-trunc", "Do not shorten"),
            flag("-q, --quiet", "Print ids only"),
        ),
        minimum=1,
        maximum=1,
        complete="image",
    ),
    "image prune": Command(prune, "", (flag("-a, --all", "Also those with a name"), *PRUNE), maximum=0),
}
