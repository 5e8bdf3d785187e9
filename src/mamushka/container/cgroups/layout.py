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
from mamushka.linux.process import initial
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
    controllers: tuple[str, ...] = ()  # those of the cgroup2 tree's root, or of the part that is this user's
    base: str = ""  # the part of the cgroup2 tree that is this user's; empty for all of it
    reason: str = ""  # why there are none, although the host has some


_whole: Layout | None = None
_present: Layout | None = None


def whole() -> Layout:
    """This host's, found once per process, whatever of it the caller may use."""
    global _whole
    if _whole is None:
        _whole = _detect()
    return _whole


def layout() -> Layout:
    """What of this host's layout the caller may use, found once per process."""
    global _present
    if _present is None:
        _present = whole()
        if not initial() or os.geteuid():
            _present = _allowed(_present)
        trace.event("cgroup.layout", kind=_present.kind, base=_present.base)
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


def _allowed(found: Layout) -> Layout:
    """What of it somebody may use who is not the host's root: all, a part that was delegated to him, or nothing.

    A process may be moved only where the cgroup above both its old and its new one is the mover's to write. So the
    part must hold this process itself: the highest writable cgroup above it. cgroups(7), "Delegation".
    """
    if found.kind != UNIFIED:
        if all(os.access(where, os.W_OK) for where in {found.unified, *found.v1.values()} - {""}):
            return found
        return Layout(ABSENT, reason="cgroup v1 cannot be delegated: boot with systemd.unified_cgroup_hierarchy=1")
    base = ""
    own = _own_path()
    names = own.split("/")[1:] if own != "/" else []
    for count in range(len(names) + 1):
        base = "".join(f"/{name}" for name in names[:count])
        where = found.unified + base
        if os.access(where, os.W_OK) and os.access(f"{where}/cgroup.procs", os.W_OK):
            return Layout(UNIFIED, found.unified, EMPTY, _controllers(where) or (), base)
    reason = f"the cgroup {own} is not yours: systemd-run --user --scope -p Delegate=yes mamushka …"
    return Layout(ABSENT, reason=reason)


def _own_path() -> str:
    """This process's cgroup in the cgroup2 tree."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        return next((line[3:].rstrip("\n") for line in lines if line.startswith("0::")), "/")


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

    An absolute path starts at the hierarchy's mount, a relative one at /mamushka; none is /mamushka/ID. For an
    ordinary user all lie below the cgroup that is delegated to him.
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
    base = layout().base
    if base and not path.startswith(f"{base}/"):
        path = base + path
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
    if found.reason:
        return found.kind, f"no cgroup may be made, so no limits and no accounting: {found.reason}"
    if found.kind == ABSENT:
        return found.kind, "no cgroup hierarchy is mounted: no limits, no accounting"
    v1 = ", ".join(sorted(name for name in found.v1 if not name.startswith(_NAMED)))
    tree = (
        f"cgroup2 at {found.unified}{found.base} with {' '.join(found.controllers) or 'no controller'}"
        if found.unified
        else ""
    )
    return found.kind, "; ".join(filter(None, (tree, v1 and f"v1: {v1}")))
