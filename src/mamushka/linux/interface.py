"""A link's flags without netlink, whose messages cost two milliseconds of imports: netdevice(7)."""

from __future__ import annotations

import _socket

from mamushka.linux.abi import Annotated, ioctl, pack, s16, struct

IFF_UP = 0x1
IFF_RUNNING = 0x40
_IFREQ_SIZE = 40  # the other members of its union are larger than the flags


@struct
class ifreq:
    """A link by name, and its flags. include/uapi/linux/if.h."""

    ifr_name: Annotated[bytes, 16]
    ifr_flags: s16


@ioctl(0x8914)
def SIOCSIFFLAGS(fd: int, request: bytearray) -> None:
    """Set a link's flags; the request is as long as the whole struct ifreq."""


def set_up(name: str) -> None:
    """Switch a link of the thread's network namespace on."""
    request = ifreq(ifr_name=name.encode(), ifr_flags=IFF_UP | IFF_RUNNING)
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        SIOCSIFFLAGS(any_socket.fileno(), bytearray(pack(request).ljust(_IFREQ_SIZE, b"\0")))
    finally:
        any_socket.close()
