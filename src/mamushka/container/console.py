"""The container's terminal: made in its own devpts, its master side handed out, its slave side /dev/console.

Neither side is ever opened by a path that the container could have prepared (CVE-2025-52565): the slave comes from
the master (TIOCGPTPEER), and what is mounted at /dev/console is that descriptor.
"""

from __future__ import annotations

import os

from mamushka.container.channel import CONSOLE as CONSOLE_PACKET
from mamushka.container.channel import descriptor_packet
from mamushka.container.operation import CONSOLE, DEVPTS, TARGET, TREE, Inside
from mamushka.container.rootfs import COPY, attach, expect, make_target, open_device, open_in_root
from mamushka.linux.fd import AT_EMPTY_PATH
from mamushka.linux.script import CHANNEL
from mamushka.linux.terminal import winsize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.script import Script, Variable
    from mamushka.spec.runtime import Process


class OpenConsole(Inside):
    """A pseudo-terminal for the program; ``mounted`` also puts it at /dev/console."""

    __slots__ = ("mounted", "pts", "size", "uid")

    def __init__(self, process: Process, *, mounted: bool, pts: bool) -> None:
        self.mounted = mounted
        self.pts = pts  # whether the container's devpts is at hand as DEVPTS
        self.uid = process.user.uid
        box = process.console_size
        # A size that does not fit the kernel's 16 bits is no terminal's.
        self.size = (min(box.height, 0xFFFF), min(box.width, 0xFFFF)) if box else (0, 0)

    def describe(self) -> str:
        return "make a terminal" + (" and mount it at /dev/console" if self.mounted else "")

    def write(self, script: Script) -> None:
        # The message's control part has the descriptor's number where the call that opens it leaves it.
        packet, master = descriptor_packet(script, CONSOLE_PACKET)
        self._open_ptmx(script, master)
        script.ioctl("TIOCSPTLCK", master, script.room(4))
        script.ioctl("TIOCGPTPEER", master, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, into=CONSOLE)
        if any(self.size):
            script.ioctl("TIOCSWINSZ", master, winsize(ws_row=self.size[0], ws_col=self.size[1]))
        script.call("fchownat", CONSOLE, b"", self.uid, -1, AT_EMPTY_PATH)
        if self.mounted:
            script.call("open_tree", CONSOLE, b"", COPY | AT_EMPTY_PATH, into=TREE)
            make_target(script, b"/dev/console", TARGET, directory=False)
            attach(script, TREE, TARGET, b"/dev/console")
            script.call("close", TARGET)
            script.call("close", TREE)
        script.call("sendmsg", CHANNEL, packet, 0)
        script.call("close", master)

    def _open_ptmx(self, script: Script, into: Variable) -> None:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        if self.pts:
            script.call("openat", DEVPTS, b"ptmx", flags, 0, into=into, about=": '/dev/pts/ptmx'")
            return
        open_device(script, b"dev/pts/ptmx", os.makedev(5, 2), TARGET, "is not the terminal multiplexer")
        script.call("close", TARGET)
        open_in_root(script, b"dev/pts/ptmx", flags | os.O_NOFOLLOW, into)
        # And once more: the container runs, and has had time to put something else there.
        expect(script, into, b"dev/pts/ptmx", os.makedev(5, 2), "is not the terminal multiplexer")
