"""Users of their own: root inside is nobody outside.

The layers are mounted with shifted owners, so workloads with different maps share them, and so are the volumes and
the small files of /etc. Directories of the host that are bound keep their owners: whoever may not write there outside
may not inside.
"""

from __future__ import annotations

from mamushka.errors import Invalid, Unsupported
from mamushka.linux.process import initial
from mamushka.spec.runtime import IDMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.settings import Settings
    from mamushka.engine.workload import Workload

# As many as one workload needs: nobody is 65534.
SIZE = 65536
# Ranges for "private" lie in the upper half below 2³¹, which no tool hands out to people.
_FIRST, _RANGES = 1 << 30, 1 << 14


def mapped(settings: Settings) -> bool:
    """Whether it has users of its own."""
    return settings.namespaces.user not in ("", "host")


def mappings(workload: Workload) -> tuple[IDMapping, ...]:
    """Ids inside from 0 are those outside from a first one: "UID:SIZE", or for "private" a range by the id."""
    text = workload.settings.namespaces.user
    if not mapped(workload.settings):
        return ()
    if text == "private":
        return (IDMapping(0, _FIRST + int(workload.id[:8], 16) % _RANGES * SIZE, SIZE),)
    first, size = _range(text)
    return (IDMapping(0, first, size),)


def check(settings: Settings) -> None:
    """Invalid for what is neither host, private nor UID:SIZE; Unsupported where another's network is to be joined."""
    if settings.namespaces.user != "private":
        _range(settings.namespaces.user)
    if not initial():
        raise Unsupported(
            f"users of its own ({settings.namespaces.user}) cannot be given to a workload without root",
            hint="leave --userns out: root inside is you outside, and all others are your subordinate ids",
        )
    others = [item.network for item in settings.networks if item.network == "host" or ":" in item.network]
    if others:
        raise Unsupported(
            f"the network {others[0]} cannot be joined with users of one's own: it belongs to other ones' root",
            hint="a network of its own, or --network none",
        )


def namespace(workload: Workload) -> int:
    """A user namespace for its users, the caller's to close; -1 where they are the host's."""
    if not mapped(workload.settings):
        return -1
    from mamushka.container.idmap import user_namespace

    ids = mappings(workload)
    return user_namespace(ids, ids)


def _range(text: str) -> tuple[int, int]:
    first, colon, size = text.partition(":")
    numbers = [int(part) if part.isascii() and part.isdecimal() and len(part) < 11 else -1 for part in (first, size)]
    if not colon or numbers[0] < 0 or numbers[1] < 1 or sum(numbers) > (1 << 32) - 2:
        raise Invalid(f"invalid user namespace {text!r}", hint="host, private, or UID:SIZE as in 100000:65536")
    return numbers[0], numbers[1]
