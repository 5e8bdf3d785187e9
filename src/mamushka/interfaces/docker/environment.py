"""Environment variables, labels and the files that list them, as Docker reads them."""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A whole environment must pass through execve, which takes at most a few MiB.
_FILE_MAX = 4 << 20


def variable(text: str) -> str:
    """NAME=value, or the bare NAME of one that is handed on; a NUL or no name is refused."""
    if not text.partition("=")[0]:
        raise Invalid("the variable has no name", hint="write NAME=value, or NAME to hand on your own")
    if "\0" in text:
        raise Invalid("a variable cannot hold a NUL")
    return text


def pair(text: str) -> tuple[str, str]:
    """KEY=value of a label, annotation or sysctl; the value may be missing."""
    key, _, word = text.partition("=")
    if not key:
        raise Invalid("the key is missing", hint="write key=value")
    return key, word


def file_lines(path: str, what: str) -> list[str]:
    """The lines of a small text file that are neither empty nor comments."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_FILE_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"the {what} {path!r} does not exist") from error
    except OSError as error:
        raise Invalid(f"cannot read the {what} {path!r}: {error.strerror}") from error
    if len(raw) > _FILE_MAX:
        raise Invalid(f"the {what} {path!r} has more than {_FILE_MAX} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"the {what} {path!r} is not UTF-8 at byte {error.start}") from error
    return [line.lstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def environment(given: Iterable[str], files: Iterable[str], own: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Files first, then the options; a bare NAME takes the caller's own value, and nothing where it has none."""
    own = os.environ if own is None else own
    lines = [_line(line, path) for path in files for line in file_lines(path, "environment file")]
    result = {}
    for text in (*lines, *given):
        name, equals, word = text.partition("=")
        if equals:
            result[name] = word
        elif name in own:
            result[name] = own[name]
    return tuple(f"{name}={word}" for name, word in result.items())


def _line(line: str, path: str) -> str:
    name = variable(line).partition("=")[0]
    if name != name.strip() or " " in name or "\t" in name:
        raise Invalid(f"the variable {name!r} in {path!r} has white space in its name")
    return line


def labels(given: Iterable[tuple[str, str]], files: Iterable[str] = ()) -> dict[str, str]:
    """Files first, then the options."""
    lines = [pair(line) for path in files for line in file_lines(path, "label file")]
    return dict((*lines, *given))
