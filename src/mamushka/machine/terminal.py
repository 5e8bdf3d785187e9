"""The host's half of a terminal: a pair whose master the caller gets, and whose other side only carries bytes.

The terminal that the program sees is in the guest, with its line discipline, its echo and its signals. This one is made
raw, so that it adds nothing of its own; what is left of it is that it has a size, of whose changes whoever has it as
its controlling terminal is told by SIGWINCH.
"""

from __future__ import annotations

import os

from mamushka.linux.terminal import TIOCSCTTY, make_raw, open_pair, set_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import Process


def open_terminal(process: Process) -> tuple[int, int]:
    """(master, other side) of the size that the process asks for; the caller's to close."""
    master, other = open_pair()
    try:
        os.set_blocking(other, False)
        make_raw(other)
        box = process.console_size
        if box is not None:
            # A size that does not fit the kernel's 16 bits is no terminal's.
            set_size(master, min(box.height, 0xFFFF), min(box.width, 0xFFFF))
    except BaseException:
        os.close(master)
        os.close(other)
        raise
    return master, other


def take(other: int) -> None:
    """In a process that leads its session: be told when the size changes."""
    TIOCSCTTY(other, 0)


def stream(fd: int, flags: int) -> int:
    """A stream of our own to what ``fd`` names, non-blocking where the kernel gives a second description of it.

    ``flags`` is os.O_RDONLY or os.O_WRONLY. Of a socket, or of what this process may not open, it is a duplicate.
    """
    if os.isatty(fd) or _is_pipe(fd):
        try:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass  # another's terminal, or an end of a pipe that only goes the other way
    return os.dup(fd)


def _is_pipe(fd: int) -> bool:
    import stat

    return stat.S_ISFIFO(os.fstat(fd).st_mode)
