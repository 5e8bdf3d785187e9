"""What a bundle's mounts become in a user namespace that is not the host's."""

from __future__ import annotations

from mamushka.linux import users
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import Mount

# Filesystems that mount their options with one meaning in a bind mount, by the word that says it for a whole tree.
_RECURSIVE = {"ro": "rro", "nosuid": "rnosuid", "nodev": "rnodev", "noexec": "rnoexec"}


def substitute(mount: Mount, *, own_network: bool) -> Mount:
    """The mount as it is possible here, and shows the same.

    sysfs belongs to a network namespace, and only its owner may mount it: with the host's network the host's is bound.
    A terminal's group, which devpts wants as gid=5, is left out where there is no such id.
    """
    if mount.type == "sysfs" and not own_network:
        words = tuple(_RECURSIVE.get(word, word) for word in mount.options)
        return replace(mount, type="bind", source="/sys", options=("rbind", *words))
    if mount.type in ("devpts", "tmpfs"):
        return replace(mount, options=tuple(word for word in mount.options if _known(word)))
    return mount


def _known(word: str) -> bool:
    """False for uid=… and gid=… of an id that the namespace does not have."""
    key, _, number = word.partition("=")
    if key not in ("uid", "gid") or not number.isdecimal():
        return True
    return users.has(int(number), users.ranges(key))
