"""What a bundle's mounts and devices become in a user namespace that is not the host's. Decision 0032."""

from __future__ import annotations

import os
import stat

from mamushka.errors import NotFound
from mamushka.linux import users
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.container.namespaces import Namespaces
    from mamushka.spec.runtime import Device, Mount

# What shows a namespace may be mounted by the namespace's owner alone. For a shared one, the host's mount is bound.
_SHOWN = {"sysfs": ("network", "/sys"), "proc": ("pid", "/proc"), "mqueue": ("ipc", "/dev/mqueue")}
# Words that a bind mount needs for the mounts below, too.
_RECURSIVE = {"ro": "rro", "nosuid": "rnosuid", "nodev": "rnodev", "noexec": "rnoexec"}
# Directories of /dev that a device is looked for in, so that a strange tree costs no time.
_DIRECTORIES_MAX = 64


def substitute(mounts: Iterable[Mount], namespaces: Namespaces) -> Iterator[Mount]:
    """The mounts as they are possible here, and show the same.

    A terminal's group, which devpts wants as gid=5, is left out where there is no such id.
    """
    for mount in mounts:
        kind, source = _SHOWN.get(mount.type, ("", ""))
        if kind and not namespaces.has(kind):
            if os.path.isdir(source):  # else the host does not show it either
                words = tuple(_RECURSIVE.get(word, word) for word in mount.options)
                yield replace(mount, type="bind", source=source, options=("rbind", *words))
        elif mount.type in ("devpts", "tmpfs"):
            yield replace(mount, options=tuple(word for word in mount.options if _known(word)))
        else:
            yield mount


def _known(word: str) -> bool:
    """False for uid=… and gid=… of an id that the namespace does not have."""
    key, _, number = word.partition("=")
    if key not in ("uid", "gid") or not number.isdecimal():
        return True
    return users.has(int(number), users.ranges(key))


def host_node(device: Device) -> bytes:
    """Where the host has this device, which nobody here may make. NotFound where it has none."""
    block = device.type == "b"
    number = os.makedev(device.major, device.minor)
    places = [device.path, f"/dev/{'block' if block else 'char'}/{device.major}:{device.minor}", *_nodes()]
    for place in places:
        try:
            found = os.stat(place)
        except OSError:
            continue
        if found.st_rdev == number and (stat.S_ISBLK if block else stat.S_ISCHR)(found.st_mode):
            return os.fsencode(place)
    raise NotFound(
        f"cannot give the device {device.path}: the host has no node {device.type} {device.major}:{device.minor}",
        hint="in a user namespace no device can be made, only one of the host's bound",
    )


def _nodes() -> Iterator[str]:
    """All in /dev, should it be somewhere else there."""
    for count, (directory, _, names) in enumerate(os.walk("/dev")):
        if count > _DIRECTORIES_MAX:
            return
        yield from (f"{directory}/{name}" for name in names)
