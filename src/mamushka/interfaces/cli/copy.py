"""``cp``: files between a workload and this machine, with Docker's rules for what the destination means.

An existing directory takes the source in under its own name, or only what is in it where the source ends in
``/.``; anything else is the source's new name. Both sides are read and written by the engine's own tar code,
which never follows a link out of the tree that it was given.
"""

from __future__ import annotations

import os
import stat
import sys

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.options import Command, flag
from mamushka.interfaces.cli.output import write_all
from mamushka.interfaces.cli.progress import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

    Look = Callable[[str], int]  # a path's st_mode; NotFound

_PIECE = 1 << 20
# As the kernel counts: more links in a row than this are a circle.
_LINKS_MAX = 40


def copy(arguments: Arguments, session: Session) -> int:
    """One side is a workload's, NAME:PATH."""
    source, target = (_side(text) for text in arguments.operands)
    if bool(source[0]) == bool(target[0]):
        raise Invalid(
            "one side must be in a workload, and one on this machine", hint="for example: cp web:/etc/hosts ./hosts"
        )
    if source[0]:
        _out(arguments, session, *source, target[1])
    else:
        _in(arguments, session, source[1], *target)
    return 0


def _side(text: str) -> tuple[str, str]:
    """(workload, path); no workload where the text is a path of this machine."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        return "", text
    return name, path or "/"


def place(source: str, is_directory: bool, target: str, look: Look) -> tuple[str, str]:
    """(the directory to unpack into, what the source is called there); an empty name is the directory itself."""
    contents = source in (".", "/") or source.endswith("/.")
    if _is_directory(target, look):
        return target, "" if contents and is_directory else _last(source)
    if is_directory and _exists(target, look):
        raise Invalid(f"cannot copy the directory {source!r} over the file {target!r}")
    if target.endswith("/") and not is_directory:
        raise NotFound(f"the directory {target!r} does not exist")
    parent, name = os.path.split(target.rstrip("/"))
    if not _is_directory(parent or ".", look):
        raise NotFound(f"the directory {parent!r} does not exist", hint="cp makes the last name, not what leads there")
    return parent or ".", name


def _last(source: str) -> str:
    return os.path.basename(source.rstrip("/").removesuffix("/.").rstrip("/"))


def _exists(path: str, look: Look) -> bool:
    try:
        look(path)
    except NotFound:
        return False
    return True


def _is_directory(path: str, look: Look) -> bool:
    """A link to a directory counts: the slash asks for what is behind it."""
    try:
        return stat.S_ISDIR(look(path.rstrip("/") + "/"))
    except NotFound:
        return False


def _here(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path!r} does not exist on this machine") from error


def _out(arguments: Arguments, session: Session, workload: str, source: str, target: str) -> None:
    from mamushka.storage import tree

    engine = session.engine
    path = _followed(session, workload, source) if arguments.follow_link else source
    if target == "-":
        if sys.stdout.isatty():
            raise Invalid("an archive on a terminal helps nobody", hint="redirect the output")
        for chunk in engine.copy_out(workload, path):
            write_all(1, chunk)
        return
    is_directory = stat.S_ISDIR(_mode(session, workload, path))
    parent, name = place(source, is_directory, target, _here)
    owner = None if arguments.archive else (os.geteuid(), os.getegid())
    root = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        chunks = engine.copy_out(workload, path, name=name)
        tree.unpack(root, "/", chunks if arguments.quiet else counted(chunks, "copied"), owner=owner)
    finally:
        os.close(root)


def _in(arguments: Arguments, session: Session, source: str, workload: str, target: str) -> None:
    engine = session.engine

    def look(path: str) -> int:
        return _mode(session, workload, path)

    if source == "-":
        if not _is_directory(target, look):
            raise NotFound(f"{target!r} is not a directory of {workload}")
        engine.copy_in(workload, target, _stdin(), keep_owner=arguments.archive)
        return
    path = os.path.realpath(source) if arguments.follow_link else source
    is_directory = stat.S_ISDIR(_here(path + ("/" if path.endswith("/.") else "")))
    parent, name = place(source, is_directory, "/" + target.lstrip("/"), look)
    chunks = _packed(path, name)
    chunks = chunks if arguments.quiet else counted(chunks, "copied")
    engine.copy_in(workload, parent, chunks, keep_owner=arguments.archive)


def _packed(path: str, name: str) -> Iterator[bytes]:
    from mamushka.storage import tree

    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Not normalised: a/../b is not b where a is a link.
        yield from tree.pack(root, os.path.join(os.getcwd(), path), name=name)
    finally:
        os.close(root)


def _stdin() -> Iterable[bytes]:
    while chunk := os.read(0, _PIECE):
        yield chunk


def _mode(session: Session, workload: str, path: str) -> int:
    mode = session.engine.stat(workload, path)["mode"]
    assert isinstance(mode, int)
    return mode


def _followed(session: Session, workload: str, path: str) -> str:
    """Where the links of the path's last name lead, inside the workload."""
    for _ in range(_LINKS_MAX):
        link = str(session.engine.stat(workload, path)["link"])
        if not link:
            return path
        path = os.path.join(os.path.dirname(path.rstrip("/")), link)
    raise Invalid(f"{path!r} is a link in a circle")


COMMANDS = {
    "cp": Command(
        copy,
        "WORKLOAD:SOURCE DESTINATION|-  or  SOURCE|- WORKLOAD:DESTINATION",
        (
            flag("-a, --archive", "Keep owners"),
            flag("-L, --follow-link", "Copy what a link points to"),
            flag("-q, --quiet", "Do not show how much is copied"),
        ),
        minimum=2,
        maximum=2,
        complete="container",
        notes="- stands for a tar archive on standard input or output.",
    )
}
