"""Whom a container's cgroup belongs to. runtime-spec, config-linux.md#cgroup-ownership.

A container that may write to the cgroup file system that it sees can make cgroups of its own below its own, if its
directory and three of the files in it are its user's. Limits stay the host's: no other file changes its owner. Only on
cgroup v2, where this is safe, and only with a cgroup namespace of its own.
"""

from __future__ import annotations

import os

from mamushka import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import Config, IDMapping

_DELEGATE = "/sys/kernel/cgroup/delegate"
_FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


def owner(config: Config) -> int:
    """The host's uid that the cgroup is to belong to; -1 where it is to stay as it is."""
    new = any(entry.type == "cgroup" and not entry.path for entry in config.linux.namespaces)
    writable = any(
        mount.destination == "/sys/fs/cgroup" and mount.type in ("cgroup", "cgroup2") and "ro" not in mount.options
        for mount in config.mounts
    )
    if not (new and writable) or config.process is None:
        return -1
    return _on_the_host(config.process.user.uid, config.linux.uid_mappings)


def _on_the_host(uid: int, mappings: tuple[IDMapping, ...]) -> int:
    """What an id inside is outside; -1 for one that has no other side."""
    if not mappings:
        return uid
    inside = (m for m in mappings if m.container_id <= uid < m.container_id + m.size)
    return next((m.host_id + uid - m.container_id for m in inside), -1)


def give(directory: str, uid: int) -> None:
    """Make a cgroup v2 directory, and what the kernel lists as safe in it, somebody's."""
    try:
        with open(_DELEGATE, encoding="ascii") as names:
            files = names.read().split()
    except OSError:
        files = [*_FILES]
    for name in ("", *files):
        try:
            os.chown(f"{directory}/{name}", uid, -1)
        except FileNotFoundError:  # not every cgroup has every file
            continue
        except PermissionError as error:  # an ordinary user gives nothing away
            trace.event("cgroup.not_given", path=f"{directory}/{name}", uid=uid, error=error.strerror)
            return
