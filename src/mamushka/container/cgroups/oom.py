"""Being told when the kernel kills for want of memory, instead of asking again and again.

cgroup v1 has an eventfd for it, cgroup v2 a file whose change inotify tells. Neither says how the container is: who
watches also watches its first process.
"""

from __future__ import annotations

import os

from mamushka.container.cgroups.files import table, write
from mamushka.linux.inotify import IN_MODIFY, drain, watch


class OomWatch:
    """``descriptor`` is readable when something may have happened; ``kills`` then says how often since the last time.

    A directory of ``version`` 1 or 2 that has the memory controller. The owner closes it.
    """

    __slots__ = ("_directory", "_seen", "_version", "descriptor")

    def __init__(self, directory: str, version: int) -> None:
        self._directory, self._version = directory, version
        self._seen = 0
        if version == 1:
            self.descriptor = _eventfd(directory)
        else:
            self.descriptor = watch(directory + "/memory.events", IN_MODIFY)
            self._seen = self._count()

    def _count(self) -> int:
        return table(self._directory + "/memory.events").get("oom_kill", 0)

    def kills(self) -> int:
        """How many more there were."""
        if self._version == 1:
            count = os.eventfd_read(self.descriptor)
            # The end of the cgroup is told as well.
            return count if os.path.exists(self._directory + "/memory.oom_control") else 0
        drain(self.descriptor)
        before, self._seen = self._seen, max(self._seen, self._count())
        return self._seen - before

    def close(self) -> None:
        """Stop watching."""
        os.close(self.descriptor)


def _eventfd(directory: str) -> int:
    """Documentation/admin-guide/cgroup-v1/memory.rst, section 10."""
    events = os.eventfd(0, os.EFD_CLOEXEC)
    control = -1
    try:
        control = os.open(directory + "/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        write(directory + "/cgroup.event_control", f"{events} {control}")
    except BaseException:
        os.close(events)
        raise
    finally:
        if control >= 0:
            os.close(control)
    return events
