"""Taps: network devices whose other end is a descriptor. Documentation/networking/tuntap.rst, if_tun.h.

A read gives one frame, a write sends one; with IFF_VNET_HDR each begins with a virtio_net_hdr, which tells of
checksums that are still to be made and of segments that are still to be cut. A tap is gone with its last descriptor.
"""

from __future__ import annotations

import errno
import os
from sys import byteorder

from mamushka.errors import Unsupported
from mamushka.linux.abi import IOW, Annotated, ioctl, s32, struct, u32

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08

HEADER = 12  # bytes of virtio_net_hdr_v1, before each frame

_DEVICE = "/dev/net/tun"


@struct
class ifreq:
    """A device and one thing about it. include/uapi/linux/if.h."""

    ifr_name: Annotated[bytes, 16] = b""
    ifr_ifru: Annotated[bytes, 24] = b""  # a union; for us its first two bytes, the flags


@struct
class tun_number:
    """What the kernel takes a pointer to an int for."""

    value: s32 = 0


@ioctl(0x400454CA)
def TUNSETIFF(fd: int, request: ifreq) -> None:
    """Make a device, or open one's further queue; the name that it got is in the request. Declared with an int."""


@IOW(ord("T"), 208)
def TUNSETOFFLOAD(fd: int, offloads: u32) -> None:
    """Which frames the descriptor's owner takes unfinished: TUN_F_."""


@IOW(ord("T"), 216)
def TUNSETVNETHDRSZ(fd: int, size: tun_number) -> None:
    """Bytes of the header before each frame."""


def open_tap(name: str) -> tuple[int, str]:
    """(descriptor, name) of a new tap in the thread's network namespace; ``%d`` in the name is a free number.

    Frames have a header of 12 bytes; reads and writes do not wait. Unsupported where the kernel has no taps, OSError
    EPERM where the namespace is not the caller's.
    """
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EACCES):
            raise
        raise Unsupported(
            f"a machine's network needs {_DEVICE}: {error.strerror}",
            hint=f"sudo modprobe tun; sudo chmod 666 {_DEVICE}; in a container: --device {_DEVICE}",
        ) from error
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        request = ifreq(ifr_name=name.encode(), ifr_ifru=flags.to_bytes(2, byteorder))
        TUNSETIFF(fd, request)
        TUNSETVNETHDRSZ(fd, tun_number(value=HEADER))
    except BaseException:
        os.close(fd)
        raise
    return fd, request.ifr_name.decode()
