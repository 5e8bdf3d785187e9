"""What a namespace's file tells of it. ioctl_ns(2), include/uapi/linux/nsfs.h."""

from __future__ import annotations

from mamushka.linux.abi import IO

NSIO = 0xB7


@IO(NSIO, 0x3)
def NS_GET_NSTYPE(fd: int) -> int:
    """Its type, a CLONE_NEW… flag; ENOTTY where the file is no namespace. Linux 4.11."""
    raise NotImplementedError
