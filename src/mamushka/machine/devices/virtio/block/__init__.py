"""A disk for the guest. VIRTIO 1.2, section 5.2.

device     Block: its features and queue, one thread of its own
request    what a driver asks, taken from a chain          limits   bytes and operations a second
disk       Disk: what it needs of the image behind it, which is somebody else's
"""

from __future__ import annotations

from mamushka.machine.devices.virtio.block.device import Block
from mamushka.machine.devices.virtio.block.disk import Disk
from mamushka.machine.devices.virtio.block.limits import Limits

__all__ = ["Block", "Disk", "Limits"]
