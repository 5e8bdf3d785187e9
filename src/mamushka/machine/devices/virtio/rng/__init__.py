"""Entropy for the guest. VIRTIO 1.2, section 5.4."""

from __future__ import annotations

import os

from mamushka.machine.devices.virtio.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Rng"]

# For each request: Linux asks for 64 bytes; more would let one guest keep the loop busy with the host's generator.
REQUEST_MAX = 4096


class Rng(Device):
    """Fills the driver's buffers with the host's entropy."""

    device_id: ClassVar[int] = 4
    queues: ClassVar[tuple[str, ...]] = ("requestq",)
    depth: ClassVar[int] = 16  # the driver waits for each; more only takes memory

    def notify(self, index: int) -> None:
        """Serve all; a buffer may be filled in part, and at least one byte of it is (5.4.6.1)."""
        queue = self.started[index]
        for chain in queue.serve():
            length = min(chain.writable_length, REQUEST_MAX)
            queue.push(chain, chain.fill(os.getrandom(length)))
        queue.signal()
