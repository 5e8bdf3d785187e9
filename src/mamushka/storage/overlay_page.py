"""Overlay mounts for kernels before 6.5, whose lowerdir is one string in one page of mount options.

A thread leaves the process's working directory and mount namespace, so that what it does is seen nowhere
else; there it gives each directory a short name on a tmpfs, mounts, and clones the mount into a descriptor.
Five hundred layers take 2 KiB of the page that way.
"""

from __future__ import annotations

import os

from mamushka.linux import mount as kernel
from mamushka.linux.fd import AT_FDCWD
from mamushka.linux.process import CLONE_NEWNS, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_FS = 0x200
# A directory that every host has and that holds no layer: the tmpfs hides it, in the thread's view only.
_DESK = b"/sys"


def mount_by_page(
    lowers: Sequence[str], options: Sequence[tuple[str, str]], attributes: int, *, trees: Sequence[int] = ()
) -> int:
    """A detached mount, made the old way. ``trees`` are detached mounts of the layers, to be taken instead of them."""
    from threading import Thread

    result: list[int] = []
    failures: list[OSError] = []

    def work() -> None:
        try:
            result.append(_mount_privately(lowers, options, trees))
        except OSError as error:
            failures.append(error)

    thread = Thread(target=work, name="overlay-mount")
    thread.start()
    thread.join()
    if failures:
        from mamushka.storage.overlay import refused

        raise refused(failures[0], []) from failures[0]
    if attributes:
        kernel.set_attributes(result[0], set=attributes)
    return result[0]


def _mount_privately(lowers: Sequence[str], options: Sequence[tuple[str, str]], trees: Sequence[int]) -> int:
    unshare(_CLONE_FS | CLONE_NEWNS)
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE, None)
    kernel.mount(b"tmpfs", _DESK, b"tmpfs", 0, b"mode=0700")
    os.chdir(_DESK)
    os.mkdir("merged")
    for number, lower in enumerate(lowers):
        if trees:
            os.mkdir(str(number))
            kernel.attach(trees[number], b"%d" % number)
        else:
            os.symlink(os.path.abspath(lower), str(number))
    words = ["lowerdir=" + ":".join(map(str, range(len(lowers))))]
    for key, setting in options:
        if setting.startswith("/"):
            os.symlink(setting, key)
            setting = key
        words.append(f"{key}={setting}" if setting else key)
    kernel.mount(b"overlay", b"merged", b"overlay", 0, ",".join(words).encode())
    return kernel.open_tree(AT_FDCWD, b"merged", kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC)
