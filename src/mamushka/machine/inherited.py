"""The limits that a program behind the other wall has from whoever starts it, for a guest that inherits from nobody.

A service of systemd's may open half a million files, a shell's child a thousand; images count on either. So what the
monitor was born with is told to the guest for each limit that the bundle does not set. Two are left to its kernel,
which derives them from its memory: how many processes a user may have, and how many signals may wait.
"""

from __future__ import annotations

from mamushka.linux.rlimit import NUMBERS, prlimit64, rlimit64
from mamushka.spec.runtime import Rlimit
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.spec.runtime import Process

_BY_MEMORY = ("RLIMIT_NPROC", "RLIMIT_SIGPENDING")
# Above a kernel's fs.nr_open, which is this unless somebody has changed it, the limit cannot be set.
_FILES_MAX = 1 << 20


def limits() -> Mapping[str, Rlimit]:
    """This process's own, before its cage lowers them."""
    found = {}
    for name, number in NUMBERS.items():
        now = rlimit64(rlim_cur=0, rlim_max=0)
        prlimit64(0, number, None, now)
        most = _FILES_MAX if name == "RLIMIT_NOFILE" else now.rlim_max
        if name not in _BY_MEMORY:
            found[name] = Rlimit(name, hard=min(now.rlim_max, most), soft=min(now.rlim_cur, most))
    return found


def within(process: Process, given: Mapping[str, Rlimit]) -> Process:
    """The process with these limits where it has none of its own."""
    own = {limit.type for limit in process.rlimits}
    return replace(process, rlimits=(*process.rlimits, *(given[name] for name in given if name not in own)))
