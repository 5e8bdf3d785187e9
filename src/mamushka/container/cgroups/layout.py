"""Where this host's cgroup hierarchies are, and where in them a container belongs.

Three layouts occur. *unified*: /sys/fs/cgroup is the one cgroup2 tree. *legacy*: one v1 hierarchy for each
controller, or for a few that share it. *hybrid*: as legacy, and a cgroup2 tree beside them, mostly without
controllers, where processes are tracked, frozen and killed.

/proc/self/cgroup names the hierarchies in one short read, and convention says where each is mounted; only
where convention fails is the mount table read.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

UNIFIED, HYBRID, LEGACY, ABSENT = "unified", "hybrid", "legacy", "absent"
ROOT = "/sys/fs/cgroup"
PARENT = "/mamushka"
# cgroup v1 names of hierarchies without a controller start with this in /proc/self/cgroup.
_NAMED = "name="


@value
class Layout:
    """The mount points. ``v1`` maps a controller, or ``name=…``, to its hierarchy; several may share one."""

    kind: str
    unified: str = ""
    v1: Mapping[str, str] = EMPTY
    controllers: tuple[str, ...] = ()  # those of the cgroup2 tree's root


_present: Layout | None = None


def layout() -> Layout:
    """This host's, found once per process."""
    global _present
    if _present is None:
        _present = _detect()
        trace.event("cgroup.layout", kind=_present.kind)
    return _present


def _detect() -> Layout:
    controllers = _controllers(ROOT)
    if controllers is not None:
        return Layout(UNIFIED, ROOT, EMPTY, controllers)
    names = _hierarchies()
    v1 = {}
    for group in names:
        where = f"{ROOT}/{group.removeprefix(_NAMED)}"
        if not os.access(where + "/tasks", os.F_OK):
            return _from_mounts()
        v1.update(dict.fromkeys(group.split(","), where))
    unified = ROOT + "/unified"
    controllers = _controllers(unified)
    if controllers is not None:
        return Layout(HYBRID, unified, v1, controllers)
    return Layout(LEGACY, "", v1) if v1 else _from_mounts()


def _hierarchies() -> list[str]:
    """The v1 hierarchies' controller lists, as /proc/self/cgroup has them."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            return [group for line in lines if (group := line.split(":", 2)[1])]
    except FileNotFoundError:  # a kernel without cgroups
        return []


def _controllers(tree: str) -> tuple[str, ...] | None:
    """The controllers that a cgroup2 tree's root offers; None when no such tree is there."""
    try:
        with open(tree + "/cgroup.controllers", encoding="utf-8") as names:
            return tuple(names.read().split())
    except OSError:
        return None


def _from_mounts() -> Layout:
    """The layout by the mount table. proc_pid_mountinfo(5)."""
    v1: dict[str, str] = {}
    unified = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            fstype, _, options = right.split(" ", 2)
            if fstype == "cgroup2":
                unified = unified or _unescape(left.split(" ")[4])
            elif fstype == "cgroup":
                where = _unescape(left.split(" ")[4])
                for option in options.strip().split(","):
                    if option not in _MOUNT_WORDS:
                        v1.setdefault(option, where)
    controllers = (_controllers(unified) or ()) if unified else ()
    kind = (HYBRID if unified else LEGACY) if v1 else (UNIFIED if unified else ABSENT)
    return Layout(kind, unified, v1, controllers)


# Options of a cgroup mount that name no controller.
_MOUNT_WORDS = ("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods")


def _unescape(path: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, letter)
    return path


def resolve(cgroups_path: str, container_id: str) -> str:
    """The absolute path, in every hierarchy, of a bundle's ``linux.cgroupsPath``.

    An absolute path starts at the hierarchy's mount, a relative one at /mamushka; none is /mamushka/ID.
    Invalid for a path that leaves its hierarchy, or that is the hierarchy itself.
    """
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        raise Unsupported(
            f"cannot place {container_id} in the systemd unit {cgroups_path!r}: cgroups are made as directories",
            hint="choose the systemd cgroup manager (--systemd-cgroup), or give an absolute cgroupsPath",
        )
    path = cgroups_path or container_id
    if not path.startswith("/"):
        path = f"{PARENT}/{path}"
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if part in (".", "..") or "\n" in part or "\0" in part or len(part) > _NAME_MAX:
            raise Invalid(f"cgroupsPath {cgroups_path!r} is not valid: the name {part!r} cannot be used")
    if not parts:
        raise Invalid(f"cgroupsPath {cgroups_path!r} is the hierarchy itself", hint="name a cgroup below it")
    return "/" + "/".join(parts)


_NAME_MAX = 255  # include/uapi/linux/limits.h


def describe() -> tuple[str, str]:
    """For ``doctor``: the layout in a word, and what is where in a sentence."""
    found = layout()
    if found.kind == ABSENT:
        return found.kind, "no cgroup hierarchy is mounted: no limits, no accounting"
    v1 = ", ".join(sorted(name for name in found.v1 if not name.startswith(_NAMED)))
    tree = f"cgroup2 at {found.unified} with {' '.join(found.controllers) or 'no controller'}" if found.unified else ""
    return found.kind, "; ".join(filter(None, (tree, v1 and f"v1: {v1}")))
