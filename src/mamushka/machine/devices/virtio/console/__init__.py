"""Terminals and byte streams between a guest and its host, as ports of one device. VIRTIO 1.2, section 5.3.

Port 0 is a terminal (hvc0), the others are named (/dev/virtio-ports/NAME). A port has two queues, and all share two
for control messages, by which each side learns what the other has:

    driver                          device
    DEVICE_READY             ->
                             <-     DEVICE_ADD                      for each port
    PORT_READY               ->
                             <-     CONSOLE_PORT, RESIZE or NAME    what it is
                             <-     PORT_OPEN                       the host listens
    PORT_OPEN 1, 0           ->                                     a program of the guest opened, closed it

Into the guest the host's bytes are read straight into the driver's buffers, where there is a program to take them.
Out of it, Linux spins until a terminal's bytes are taken, so they go to a bounded sink that may drop; a named port's
wait until the host takes them, and with them the program that wrote them. What was begun and not finished is put back
with the count of bytes that are gone: so nothing is held, and a machine that is saved loses nothing.
"""

from mamushka.machine.devices.virtio.console.device import Console
from mamushka.machine.devices.virtio.console.port import Port

__all__ = ["Console", "Port"]
