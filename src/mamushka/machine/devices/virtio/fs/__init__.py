"""virtio-fs: directories of the host's that a guest mounts.

device      the device, whose queues another process serves      virtiofsd    that process
"""

from mamushka.machine.devices.virtio.fs.device import Fs
from mamushka.machine.devices.virtio.fs.virtiofsd import Program, Share, Virtiofsd, find

__all__ = ["Fs", "Program", "Share", "Virtiofsd", "find"]
