"""A bare machine, put together: disks of storage/ plugged into what machine/bare.py holds. No image, no record."""

from __future__ import annotations

import os

from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from mamushka.machine.bare import Bare, Plugged, Terminal
    from mamushka.machine.control import Line


@value
class Disk:
    """An image's file and its format, ``raw`` or ``qcow2``, which is never guessed."""

    path: str
    format: str = "raw"
    writable: bool = True


def start(
    bare: Bare,
    terminal: Terminal,
    *,
    disks: Sequence[Disk] = (),
    tap: str = "",
    listener: _socket.socket | None = None,
) -> tuple[int, Line]:
    """See ``machine.bare.bear``. ``tap`` is the name of a tap, which is made where there is none."""
    from mamushka.machine import bare as machines

    if os.path.isdir(bare.kernel):
        from mamushka.machine.boot import kernels

        bare = replace(bare, kernel=kernels.at(bare.kernel).image)
    machines.check(bare)

    def plug() -> Plugged:
        from mamushka.storage.block import open_disk

        opened = tuple(open_disk(disk.path, disk.format, writable=disk.writable) for disk in disks)
        if not tap:
            return machines.Plugged(opened)
        from mamushka.linux.tun import open_tap

        return machines.Plugged(opened, open_tap(tap)[0])

    return machines.bear(bare, plug, terminal, listener)
