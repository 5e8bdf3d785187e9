"""``save`` and ``load``: images as archives or OCI layout directories."""

from __future__ import annotations

import os
import sys

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli import progress
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import out, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

_PIECE = 1 << 20


def save(arguments: Arguments, session: Session) -> int:
    """To a file, a directory, or standard output where that is no terminal."""
    form = arguments.format
    if form not in ("docker", "oci", "oci-dir"):
        raise Invalid(f"--format {form!r} is not known", hint="docker, oci or oci-dir")
    if form == "oci-dir":
        if not arguments.output:
            raise Invalid("a directory needs a name", hint="--output PATH")
        session.engine.images.save_directory(arguments.operands, arguments.output)
        return 0
    chunks = session.engine.images.save(arguments.operands, format=form)
    if arguments.output:
        _write_file(arguments.output, chunks)
        return 0
    if sys.stdout.isatty():
        raise Invalid("an archive on a terminal helps nobody", hint="--output FILE, or redirect the output")
    for chunk in chunks:
        write_all(1, chunk)
    return 0


def _write_file(path: str, chunks: Iterable[bytes]) -> None:
    """Under another name first: a reader never sees half an archive."""
    partial = f"{path}.{os.getpid()}.part"
    try:
        with open(partial, "wb") as file:
            for chunk in progress.counted(chunks, f"writing {path}"):
                file.write(chunk)
        os.rename(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def load(arguments: Arguments, session: Session) -> int:
    """From a file, a directory or standard input."""
    source = arguments.input
    if source and os.path.isdir(source):
        names = session.engine.images.load_directory(source)
    elif source:
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"cannot read {source!r}: {error.strerror}") from error
        with open(fd, "rb", buffering=0):
            names = session.engine.images.load(progress.counted(_chunks(fd), "reading"))
    elif sys.stdin.isatty():
        raise Invalid("there is no archive on a terminal", hint="--input FILE, or redirect the input")
    else:
        names = session.engine.images.load(_chunks(0))
    for name in names:
        if arguments.quiet:
            out(name)
        else:
            out(f"Loaded image{' ID' if name.startswith('sha256:') else ''}: {name}")
    return 0


def _chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, _PIECE):
        yield chunk


COMMANDS = {
    "save": Command(
        save,
        "IMAGE [IMAGE...]",
        (
            one("-o, --output", "Write to this file or directory", "path", complete="file"),
            one("--format", "docker, oci, or oci-dir for a directory", "format", default="docker",
                complete="docker|oci|oci-dir"),
        ),
        minimum=1,
        complete="image",
    ),
    "load": Command(
        load,
        "",
        (
            one("-i, --input", "Read this file or OCI layout directory", "path", complete="file"),
            flag("-q, --quiet", "Print names only"),
        ),
        maximum=0,
    ),
}  # fmt: skip
