"""A card's place without a card: what stands there when it was taken out, and looks like nothing (4.2.2)."""

from __future__ import annotations

from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.net.device import Net

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Vacant(Device):
    """Nothing. It has a card's queues, because the place's bells stay."""

    device_id: ClassVar[int] = 0
    queues: ClassVar[tuple[str, ...]] = Net.queues
