"""virtio-net: a network card on a tap.

device     the card: its configuration, its control queue       carrier    its frames, served by vhost-net
frames     its frames, served here where there is no vhost      control    what the control queue's bytes mean
"""

from mamushka.machine.devices.virtio.net.device import Net

__all__ = ["Net"]
