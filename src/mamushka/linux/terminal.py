"""Pseudo-terminals: making one, its size, and taking it as the controlling terminal. ioctl_tty(2)."""

from __future__ import annotations

import os

from mamushka.linux.abi import DECLARED, ioctl, s32, struct, u16


@struct
class winsize:
    """A terminal's size in characters. include/uapi/asm-generic/termios.h."""

    ws_row: u16 = 0
    ws_col: u16 = 0
    ws_xpixel: u16 = 0
    ws_ypixel: u16 = 0


@struct
class _int:
    value: s32 = 0


DECLARED.pop("_int")  # an ioctl's argument, no struct of the kernel's


@ioctl(0x540E)
def TIOCSCTTY(fd: int, steal: int) -> None:
    """Make this the controlling terminal of the calling session leader."""


@ioctl(0x5413)
def TIOCGWINSZ(fd: int, size: winsize) -> None:
    """Get the size."""


@ioctl(0x5414)
def TIOCSWINSZ(fd: int, size: winsize) -> None:
    """Set the size; the foreground process group gets SIGWINCH."""


@ioctl(0x40045431)
def TIOCSPTLCK(fd: int, lock: _int) -> None:
    """Lock or unlock the slave side of a master."""


@ioctl(0x5441)
def TIOCGPTPEER(fd: int, flags: int) -> int:
    """Open the slave side of a master, without any path. Linux 4.13."""
    raise NotImplementedError


def open_pair() -> tuple[int, int]:
    """(master, other side) of a new pseudo-terminal; neither becomes anybody's controlling terminal by this."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("/dev/ptmx", flags)
    try:
        TIOCSPTLCK(master, _int())
        return master, TIOCGPTPEER(master, flags)
    except BaseException:
        os.close(master)
        raise


def make_raw(fd: int) -> None:
    """Bytes pass as they are, each as it comes, in both directions. termios(3)."""
    import termios as t

    settings = t.tcgetattr(fd)
    settings[0] = settings[1] = settings[3] = 0  # input, output and local modes
    settings[2] |= t.CS8 | t.CREAD
    settings[6][t.VMIN], settings[6][t.VTIME] = 1, 0
    t.tcsetattr(fd, t.TCSANOW, settings)


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    TIOCSWINSZ(fd, winsize(ws_row=rows, ws_col=columns))


def size(fd: int) -> tuple[int, int]:
    """(rows, columns)."""
    result = winsize()
    TIOCGWINSZ(fd, result)
    return result.ws_row, result.ws_col
