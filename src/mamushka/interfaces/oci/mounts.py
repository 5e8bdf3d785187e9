"""mounts add, mounts remove: crun's way to change what a running container sees."""

from __future__ import annotations

import sys

from mamushka.errors import NotFound
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import runtime
from mamushka.spec import runtime as spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments


def change(options: Arguments, given: Arguments, verb: str, id: str, path: str) -> None:
    """Read a list of mounts, as a config.json has them, from a file or ``-``, and add or remove them."""
    if verb not in ("add", "remove"):
        raise UsageError(f'"mounts" is followed by add or remove, not by {verb!r}')
    wall = runtime(options)
    listed = spec.parse_mounts(_read(path))
    if verb == "add":
        wall.mount(id, listed)
    else:
        wall.unmount(id, listed)


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"the mounts document {path} does not exist") from None
