"""The container's terminal: made in its own devpts, its master side handed out, its slave side /dev/console.

Neither side is ever opened by a path that the container could have prepared (CVE-2025-52565): the slave comes from
the master (TIOCGPTPEER), and what is mounted at /dev/console is that descriptor.
"""

from __future__ import annotations

import os
from errno import EINVAL

from mamushka.container.channel import CONSOLE, send_descriptor
from mamushka.container.operation import Inside
from mamushka.container.rootfs import COPY, make_target
from mamushka.linux.fd import AT_EMPTY_PATH, open_in_root
from mamushka.linux.mount import attach, open_tree
from mamushka.linux.terminal import TIOCSCTTY, open_pair, set_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.operation import Site
    from mamushka.spec.runtime import Process


class OpenConsole(Inside):
    """A pseudo-terminal for the program; ``mounted`` also puts it at /dev/console."""

    __slots__ = ("gid", "mounted", "site", "size", "uid")

    def __init__(self, site: Site, process: Process, *, mounted: bool) -> None:
        self.site, self.mounted = site, mounted
        self.uid, self.gid = process.user.uid, process.user.gid
        box = process.console_size
        # A size that does not fit the kernel's 16 bits is no terminal's.
        self.size = (min(box.height, 0xFFFF), min(box.width, 0xFFFF)) if box else (0, 0)

    def describe(self) -> str:
        return "make a terminal" + (" and mount it at /dev/console" if self.mounted else "")

    def execute(self) -> None:
        master, slave = open_pair(self._open_ptmx())
        if any(self.size):
            set_size(master, *self.size)
        os.fchown(slave, self.uid, -1)
        if self.mounted:
            tree = open_tree(slave, b"", COPY | AT_EMPTY_PATH)
            target = make_target(self.site.root, b"/dev/console", directory=False)
            attach(tree, target)
            os.close(target)
            os.close(tree)
        send_descriptor(self.site.channel, CONSOLE, master)
        os.close(master)
        self.site.console, self.site.control = slave, TIOCSCTTY

    def _open_ptmx(self) -> int:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        if self.site.devpts >= 0:
            return os.open("ptmx", flags, dir_fd=self.site.devpts)
        ptmx = open_in_root(self.site.root, b"dev/pts/ptmx", os.O_PATH | os.O_NOFOLLOW)
        found = os.fstat(ptmx)
        if found.st_mode & 0o170000 != 0o020000 or found.st_rdev != os.makedev(5, 2):
            raise OSError(EINVAL, "is not the terminal multiplexer", "/dev/pts/ptmx")
        os.close(ptmx)
        return open_in_root(self.site.root, b"dev/pts/ptmx", flags)
