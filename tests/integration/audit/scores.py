"""What is promised of the default box: SPECIFICATION.md, 11; SECURITY.md says why it is not zero."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Command

ALONE = ("--network", "none")
# What the default box reaches, with a network and the image host.
NETWORK = {"world", "private-ranges", "host-address", "packet-sockets"}
DEFAULT = NETWORK | {
    "programs", "root", "capabilities", "process-limit",
    "memory-limit", "time-limit",
}  # fmt: skip
DEFAULT_AXES = {"network": 40, "secrets": 0, "files": 5, "privileges": 15, "processes": 25}

# What Debian's docker and podman let be reached, in an image without a program.
DOCKER = NETWORK | {
    "kernel-internals", "root", "capabilities", "new-privileges", "surface", "process-limit", "memory-limit",
    "time-limit",
}  # fmt: skip
DOCKER_AXES = {"network": 40, "secrets": 5, "files": 0, "privileges": 35, "processes": 25}
PODMAN = (NETWORK - {"packet-sockets"}) | {
    "keyring", "kernel-internals", "root", "capabilities", "new-privileges", "user-namespaces", "surface",
    "memory-limit", "time-limit",
}  # fmt: skip
PODMAN_AXES = {"network": 35, "secrets": 35, "files": 0, "privileges": 45, "processes": 15}

_DMI = "/sys/devices/virtual/dmi/id"
_SERIALS = ("product_serial", "product_uuid", "board_serial", "chassis_serial")


def of_this_machine() -> set[str]:
    """What other engines show on some machines besides: serial numbers where a firmware tells them."""
    for name in _SERIALS:
        try:
            with open(f"{_DMI}/{name}") as file:
                if file.read().strip():
                    return {"serials"}
        except OSError:
            continue
    return set()


def secrets_of_this_machine(otherwise: int) -> dict[str, int]:
    """The axis that they count to."""
    return {"secrets": otherwise + 5} if of_this_machine() else {}


def report(mamushka: Command, *words: str) -> dict[str, Any]:
    """The one report of an audit with these options."""
    done = mamushka("audit", "--json", *words)
    assert done.returncode == 0, done.stderr.decode()
    (found,) = json.loads(done.stdout)["reports"]
    return dict(found)


def reached(mamushka: Command, *words: str) -> dict[str, str]:
    """What was reached, by the probes' names."""
    return {item["probe"]: item["seen"] for item in report(mamushka, *words)["findings"] if item["reached"]}
