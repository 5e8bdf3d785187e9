"""Whether a bundle's program is in its root, seen from the host, for as long as there is no guest that could say it.

Other engines tell a program that is missing from all else that may go wrong by what ``create`` says of it. A machine
that waits for others to put links into its network is made only when it is started (creation.py); therefore its creator
looks. It refuses what is certainly not there and lets all else pass: the guest looks again, as it always does.
"""

from __future__ import annotations

import os
import stat
from errno import ENOENT

from mamushka.execution import not_executed
from mamushka.linux.fd import open_in_root
from mamushka.machine.shares import binds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.runtime import Bundle
    from mamushka.spec.runtime import Mount, Process

# As the guest has it where the environment names none (guest/child.c).
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What engines mount everywhere; nobody's programs lie there.
_ELSEWHERE = ("/proc", "/sys", "/dev")


def check(bundle: Bundle, root: int) -> None:
    """CommandNotFound where the program is certainly missing. ``root`` is a detached mount, or -1."""
    process, hooks = bundle.config.process, bundle.config.hooks
    if process is None or not process.args or bundle.disks.images or hooks.prestart or hooks.create_runtime:
        return
    name = os.path.basename(process.args[0])
    if any(_covers(item, name, bundle.path) for item in bundle.config.mounts):
        return
    place = root if root >= 0 else _open(bundle)
    try:
        if place >= 0 and not any(_perhaps(place, path) for path in candidates(process)):
            raise not_executed(process.args[0], ENOENT, os.strerror(ENOENT))
    finally:
        if place >= 0 and place != root:
            os.close(place)


def candidates(process: Process) -> list[str]:
    """Where the program may be, by its name, the working directory and $PATH."""
    name = process.args[0]
    if "/" in name:
        return [os.path.join(process.cwd, name)]
    path = next((item.partition("=")[2] for item in process.env if item.startswith("PATH=")), _PATH)
    return [os.path.join(process.cwd, directory, name) for directory in path.split(":")]


def _covers(item: Mount, name: str, bundle: str) -> bool:
    """Whether a mount may show programs: a volume, or a file of that name."""
    destination = os.path.normpath(item.destination)
    if any(destination == path or destination.startswith(f"{path}/") for path in _ELSEWHERE):
        return False
    if not binds(item):
        return True
    try:
        mode = os.stat(os.path.join(bundle, item.source)).st_mode
    except OSError:
        return True  # told when it is to be shared
    return not stat.S_ISREG(mode) or os.path.basename(destination) == name


def _open(bundle: Bundle) -> int:
    given = bundle.config.root
    path = os.path.join(bundle.path, given.path if given is not None else "rootfs")
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1  # told when it is to be shown


def _perhaps(root: int, path: str) -> bool:
    """Whether there is such a name, even if only as a link to nowhere."""
    try:
        os.close(open_in_root(root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW))
    except FileNotFoundError:
        return False
    except OSError:  # whatever else is wrong with it
        return True
    return True
