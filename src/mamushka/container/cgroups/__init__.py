"""Control groups, in all three layouts that hosts have: limits, accounting, freezing, killing, cleaning up."""

from mamushka.container.cgroups.cgroup import Cgroup, Entrance, open_cgroup, prune, stale
from mamushka.container.cgroups.layout import Layout, describe, layout, resolve

__all__ = ["Cgroup", "Entrance", "Layout", "describe", "layout", "open_cgroup", "prune", "resolve", "stale"]
