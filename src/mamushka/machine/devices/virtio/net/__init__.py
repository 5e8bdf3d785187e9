"""virtio-net: a network card on a tap.

device     the card: its configuration, its control queue       carrier    its frames, served by vhost-net
frames     its frames, served here where there is no vhost      control    what the control queue's bytes mean
vacant     a place that a card was taken out of
"""

from mamushka.machine.devices.virtio.net.device import Net
from mamushka.machine.devices.virtio.net.vacant import Vacant

__all__ = ["Net", "Vacant"]
