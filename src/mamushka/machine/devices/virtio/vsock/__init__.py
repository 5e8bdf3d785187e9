"""Streams between programs in the guest and the monitor: the vsock device, its connections, and bridges to descriptors.

vsock.listen(1024, accept)                              in the loop's thread, or before it starts
def accept(connection): connection.endpoint = Agent(connection)      an Endpoint: received, ended, reset ...
def accept(connection): Bridge(loop, connection, reading=pipe, writing=other, closed=finished)
connection = vsock.connect(52); connection.endpoint = ...             endpoint.opened() or endpoint.reset()
"""

from mamushka.machine.devices.virtio.vsock.bridge import Bridge
from mamushka.machine.devices.virtio.vsock.connection import BUFFER, SEND_MAX, Connection, Endpoint
from mamushka.machine.devices.virtio.vsock.unix import UnixSide
from mamushka.machine.devices.virtio.vsock.vsock import ANY, CONNECTIONS, Vsock

__all__ = ["ANY", "BUFFER", "CONNECTIONS", "SEND_MAX", "Bridge", "Connection", "Endpoint", "UnixSide", "Vsock"]
