"""vhost: the kernel serves a machine's queues by itself. include/uapi/linux/vhost.h.

A back end is a descriptor; it works on the memory of the process that became its owner, in that process' own addresses,
which is why all of them are hva here. Rings are numbered as the device's queues are.
"""

from __future__ import annotations

import errno
import os

from mamushka.linux.abi import IO, IOR, IOW, IOWR, ioctl, pack, s32, struct, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_VHOST = 0xAF
REGIONS_MAX = 64  # the vhost module's parameter max_mem_regions, unless it was changed


@struct
class vhost_number:
    """Sixty-four bits; the kernel takes a bare __u64."""

    value: u64 = 0


@struct
class vhost_vring_state:
    """A number about a ring: its descriptors, or the next entry to be taken."""

    index: u32 = 0
    num: u32 = 0


@struct
class vhost_vring_file:
    """A descriptor for a ring; -1 takes it away."""

    index: u32 = 0
    fd: s32 = -1


@struct
class vhost_vring_addr:
    """Where a ring's three parts are: hva."""

    index: u32 = 0
    flags: u32 = 0
    desc_user_addr: u64 = 0
    used_user_addr: u64 = 0
    avail_user_addr: u64 = 0
    log_guest_addr: u64 = 0


@struct
class vhost_memory_region:
    """Guest memory, in bytes, 4 KiB aligned."""

    guest_phys_addr: u64
    memory_size: u64
    userspace_addr: u64
    flags_padding: u64 = 0


@struct
class vhost_memory:
    """Before the regions."""

    nregions: u32
    padding: u32 = 0


@IOR(_VHOST, 0x00)
def VHOST_GET_FEATURES(fd: int, features: vhost_number) -> None:
    """What the back end can do."""


@IOW(_VHOST, 0x00)
def VHOST_SET_FEATURES(fd: int, features: vhost_number) -> None:
    """What the driver has agreed to."""


@IO(_VHOST, 0x01)
def VHOST_SET_OWNER(fd: int) -> None:
    """Work on this process' memory. Before all else; EBUSY where somebody did so already."""


@ioctl(0x4008AF03)
def VHOST_SET_MEM_TABLE(fd: int, table: bytearray) -> None:
    """vhost_memory and its regions behind each other."""


@IOW(_VHOST, 0x10)
def VHOST_SET_VRING_NUM(fd: int, state: vhost_vring_state) -> None:
    """How many descriptors a ring has."""


@IOW(_VHOST, 0x11)
def VHOST_SET_VRING_ADDR(fd: int, address: vhost_vring_addr) -> None:
    """Where it is."""


@IOW(_VHOST, 0x12)
def VHOST_SET_VRING_BASE(fd: int, state: vhost_vring_state) -> None:
    """The next entry to be taken."""


@IOWR(_VHOST, 0x12)
def VHOST_GET_VRING_BASE(fd: int, state: vhost_vring_state) -> None:
    """The same, asked."""


@IOW(_VHOST, 0x20)
def VHOST_SET_VRING_KICK(fd: int, file: vhost_vring_file) -> None:
    """The eventfd that the driver's notifications write to."""


@IOW(_VHOST, 0x21)
def VHOST_SET_VRING_CALL(fd: int, file: vhost_vring_file) -> None:
    """The eventfd that interrupts the driver."""


@IOW(_VHOST, 0x30)
def VHOST_NET_SET_BACKEND(fd: int, file: vhost_vring_file) -> None:
    """The tap that a ring's frames come from or go to; starts it, or with -1 stops it."""


def memory_table(regions: Sequence[tuple[int, int, int]]) -> bytearray:
    """For VHOST_SET_MEM_TABLE: regions as (gpa, length, hva)."""
    table = bytearray(pack(vhost_memory(nregions=len(regions))))
    for gpa, length, hva in regions:
        table += pack(vhost_memory_region(guest_phys_addr=gpa, memory_size=length, userspace_addr=hva))
    return table


def open_net() -> int:
    """A descriptor of /dev/vhost-net, owned by this process; -1 where the kernel has none for it."""
    try:
        fd = os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM):
            return -1
        raise
    try:
        VHOST_SET_OWNER(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
