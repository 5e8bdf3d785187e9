"""An ordinary user's container: this process takes the bundle's user namespace on itself before it builds anything.

The mounts of a bundle are made by its creator, who needs a mount namespace that he is root of. So the creator enters,
or makes, the user namespace that the bundle asks for, and the container is born in it. Other commands stay outside:
the owner of a user namespace has every right in it.
"""

from __future__ import annotations

import os

from mamushka.container import subordinate
from mamushka.errors import Denied, Invalid, NotFound
from mamushka.interfaces.oci.arguments import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.spec.runtime import Config

_CHOICES = ("auto", "true", "false")


def asked(options: Arguments) -> bool:
    """Whether to enter: --rootless true, false, or by who asks. Who is root already has entered, or need not."""
    choice = options.get("rootless", "auto")
    if choice not in _CHOICES:
        raise UsageError(f"--rootless takes {', '.join(_CHOICES)}, not {choice!r}")
    if choice == "false" and os.geteuid() != 0:
        raise Denied(f"uid {os.geteuid()} is not root, and --rootless is false", hint="leave --rootless out")
    return os.geteuid() != 0


def enter(config: Config) -> None:
    """Become root of the bundle's user namespace. Invalid where it asks for none."""
    linux = config.linux
    wanted = next((item for item in linux.namespaces if item.type == "user"), None)
    if wanted is None:
        raise Invalid(
            "rootless containers need a user namespace, and config.json asks for none",
            hint="mamushka-oci spec --rootless writes one with the ids that you have",
        )
    if wanted.path:
        _join(wanted.path)
        return
    if not (linux.uid_mappings and linux.gid_mappings):
        raise Invalid("a new user namespace needs linux.uidMappings and linux.gidMappings")
    subordinate.check_root(linux.uid_mappings)
    subordinate.check_root(linux.gid_mappings)
    subordinate.make(linux.uid_mappings, linux.gid_mappings)


def _join(path: str) -> None:
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"cannot join the user namespace {path}: no such file or directory") from error
    try:
        subordinate.enter(namespace)
    finally:
        os.close(namespace)


def default_root() -> str:
    """The state directory of an ordinary user."""
    return f"{subordinate.entered_from or subordinate.run_directory()}/mamushka-oci"
