"""What one thing to try is, and what its judge sees."""

from __future__ import annotations

from errno import (
    EACCES,
    EAFNOSUPPORT,
    EBADF,
    ENODEV,
    ENOENT,
    ENOSYS,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    EROFS,
    ESRCH,
)

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mamushka.engine.audit.attempts import Attempts, Outcome
    from mamushka.engine.audit.canaries import Canaries
    from mamushka.engine.settings import Mount

AXES = ("network", "secrets", "files", "privileges", "processes")

# What the kernel answers where a door is closed, and where there is none. Any other error was given after the
# question of permission: EFAULT and EINVAL for the arguments that are wrong on purpose.
CLOSED = frozenset((EPERM, EACCES, ENOSYS, EROFS))
ABSENT = frozenset(
    (ENOENT, ENODEV, ENXIO, ENOTDIR, ESRCH, EBADF, EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT),
)


@value
class Ground:
    """What the auditor knows: the canaries, and what was asked for."""

    canaries: Canaries
    mounts: tuple[Mount, ...] = ()  # those that the user asked for
    environment: tuple[str, ...] = ()  # the caller's own variables, NAME=value
    addresses: tuple[str, ...] = ()  # IPv4, the host's, on which a server listens
    private: tuple[str, ...] = ()  # IPv4, in private ranges, and in no network of the workload's own
    neighbours: tuple[str, ...] = ()  # IPv4, of workloads in networks that are not its own
    disk: tuple[int, int] = (0, 0)  # a block device of the host's
    shim: str = ""  # the socket of the workload's own shim
    machine: bool = False  # it has a machine of its own: whatever it takes of that is not the host's

    def places(self, path: str) -> tuple[str, ...]:
        """Where a file of the host's may be seen: under its own name, and below what is mounted."""
        found = [path]
        for mount in self.mounts:
            source = mount.source.rstrip("/")
            if mount.kind == "bind" and path.startswith(f"{source}/"):
                found.append(mount.destination.rstrip("/") + path[len(source) :])
        return tuple(dict.fromkeys(found))


class Seen:
    """The outcomes by their steps' names; a step that was not made has none."""

    def __init__(self, outcomes: Mapping[str, Outcome], *, heard: bool) -> None:
        self._outcomes = outcomes
        self.heard = heard  # the datagram has come

    def done(self, step: str) -> bool:
        """It was made and succeeded."""
        found = self._outcomes.get(step)
        return found is not None and not found.error

    def allowed(self, step: str) -> bool:
        """It was made, and either succeeded or failed for another reason than permission or absence."""
        found = self._outcomes.get(step)
        return found is not None and found.error not in CLOSED and found.error not in ABSENT

    def content(self, step: str) -> bytes:
        """What it has read; nothing where it failed."""
        found = self._outcomes.get(step)
        return found.content if found else b""

    def result(self, step: str) -> int:
        """What the call has answered; 0 where it failed or was not made."""
        found = self._outcomes.get(step)
        return found.result if found else 0

    def number(self, step: str, base: int = 10) -> int:
        """What it has read, as a number; -1 where it failed or is none."""
        try:
            return int(self.content(step).split()[0], base)
        except (ValueError, IndexError):
            return -1

    def error(self, step: str) -> str:
        """The errno's name, an empty text for success, "-" for a step that was not made."""
        found = self._outcomes.get(step)
        return found.name if found else "-"

    def names(self, prefix: str) -> Iterator[str]:
        """The steps whose names begin with this, with the beginning cut off."""
        return (step.removeprefix(prefix) for step in self._outcomes if step.startswith(prefix))


def nothing(_attempts: Attempts, _ground: Ground) -> None:
    """No step: those of another probe are judged."""


@value
class Probe:
    """One thing to try. ``judge`` says what was reached, or nothing; what another probe tries is not tried again."""

    name: str
    axis: str
    weight: int  # what reaching it adds to the axis, of 100
    title: str
    why: str  # why it matters
    close: str  # the option that closes it
    judge: Callable[[Seen, Ground], str]
    attempt: Callable[[Attempts, Ground], None] = nothing


def entries(listing: bytes) -> list[str]:
    """The names in what getdents64(2) answered, without . and .."""
    names, at = [], 0
    while at + 19 <= len(listing):
        size = int.from_bytes(listing[at + 16 : at + 18], "little")
        names.append(listing[at + 19 : at + size].partition(b"\0")[0].decode(errors="replace"))
        at += max(size, 19)
    return [name for name in names if name not in (".", "..")]
