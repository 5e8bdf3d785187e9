"""What a start takes from a bundle's configuration: what is kept of it, the filter, what is left to be built."""

from __future__ import annotations

from mamushka.spec.runtime import Linux, Mount
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.seccomp import Filter
    from mamushka.spec.runtime import Config, Seccomp


def to_keep(config: Config) -> Config:
    """The part of the config that later commands need; the filter is kept compiled."""
    given = config.linux
    seccomp = given.seccomp
    if seccomp is not None:
        from mamushka.container.seccomp import listens

        seccomp = replace(seccomp, architectures=(), flags=(), syscalls=()) if listens(seccomp) else None
    linux = Linux(
        namespaces=given.namespaces,
        seccomp=seccomp,
        net_devices=given.net_devices,
        intel_rdt=given.intel_rdt,
        memory_policy=given.memory_policy,
        personality=given.personality,
    )
    # Of mounts, which of them are the host's: a checkpoint leaves those out.
    binds = tuple(Mount(mount.destination) for mount in config.mounts if {"bind", "rbind"} & {*mount.options})
    return replace(config, mounts=binds, linux=linux)


def within(config: Config) -> Config:
    """What is left to be built when the user namespace is there already."""
    linux = config.linux
    kept = tuple(item for item in linux.namespaces if item.type != "user")
    return replace(config, linux=replace(linux, namespaces=kept, uid_mappings=(), gid_mappings=()))


def filter_of(config: Config) -> tuple[Filter | None, bytes]:
    """The filter ready to be installed, and as the record keeps it."""
    if config.linux.seccomp is None:
        return None, b""
    from mamushka.container import seccomp

    global _latest
    # Whoever starts many containers gives the same profile again and again; its digest is worth remembering.
    if _latest is None or _latest[0] is not config.linux.seccomp:
        made = seccomp.filter(config.linux.seccomp)
        _latest = (config.linux.seccomp, made, made.dump())
    return _latest[1], _latest[2]


_latest: tuple[Seccomp, Filter, bytes] | None = None
