"""What ``doctor`` tries for an ordinary user: the same as for root, each in a user namespace of its own."""

from __future__ import annotations

import os

from mamushka.errors import Denied, Unsupported
from mamushka.interfaces.cli import probes
from mamushka.interfaces.cli.probes import Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _become_root() -> int:
    """In a new user namespace with all ids that there are; how many."""
    from mamushka.container import subordinate

    uids, gids = subordinate.own_maps()
    subordinate.make(uids, gids)
    return sum(item.size for item in uids)


def _inside(attempt: Callable[[str], str]) -> Callable[[str], str]:
    """The attempt, made by root of a user namespace."""

    def tried(data_root: str) -> str:
        _become_root()
        return attempt(data_root)

    return tried


def _user_namespace(_data_root: str) -> str:
    from mamushka.container import subordinate

    for reason, hint in subordinate.switches():
        raise Denied(reason, hint=hint)
    return f"uid {os.geteuid()} becomes root of one, with {_become_root()} ids"


def _ids(_data_root: str) -> str:
    from mamushka.container import subordinate

    missing, _, hint = subordinate.lacking(os.geteuid()).partition(": ")
    if missing:
        raise Unsupported(f"{missing}: one id only, so no other user can be run", hint=hint)
    _become_root()
    return "other users of images can be run, and own their files"


def _cgroup(_data_root: str) -> str:
    from mamushka.container.cgroups.layout import ABSENT, layout

    found = layout()
    if found.kind == ABSENT:
        reason, _, hint = found.reason.partition(": ")
        raise Unsupported(f"no limits and no accounting: {reason}", hint=hint)
    offered = " ".join(found.controllers) or "no controller"
    return f"limits can be set below {found.base or '/'}, with {offered}"


def _network(_data_root: str) -> str:
    from mamushka.container import subordinate
    from mamushka.network import carrier
    from mamushka.network.namespace import new_namespace

    program = carrier.choose()
    _become_root()
    run = subordinate.entered_from
    words = carrier.pasta((), ipv4=True) if program.endswith("pasta") else carrier.slirp()
    carrier.stop(carrier.start(carrier.Carrier(program, words, (), run, f"{run}/netns"), new_namespace()))
    return f"{program} carries the packets of a workload"


_KEPT = {probe.name: probe for probe in probes.PROBES}


def _again(name: str, attempt: Callable[[str], str] | None = None) -> Probe:
    """One of root's probes, tried in a user namespace or in another way."""
    probe = _KEPT[name]
    return Probe(probe.name, probe.title, attempt or _inside(probe.attempt), probe.mend, probe.essential)


PROBES = (
    _KEPT["kernel"],
    Probe("user", "user namespaces", _user_namespace, "see docs/guides/rootless.md"),
    Probe("ids", "subordinate ids", _ids, "see docs/guides/rootless.md", essential=False),
    _again("namespaces"),
    _KEPT["storage"],
    _again("overlay"),
    Probe("cgroup", "control groups", _cgroup, "see docs/guides/rootless.md", essential=False),
    _again("seccomp"),
    Probe("network", "network", _network, "apt-get install passt; or run with --network none", essential=False),
    _KEPT["registries"],
    _KEPT["decompression"],
    *probes.MACHINES,
)
