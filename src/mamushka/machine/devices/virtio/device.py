"""What every virtio device is; the transport, its registers and its rings stand apart. VIRTIO 1.2, sections 2 and 5."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop


def _nobody() -> None:
    """Until a transport listens."""


class Device:
    """A device that a driver in the guest talks to through queues. All calls come in the loop's thread.

    A subclass says what it is, then what it does. What it needs of the host (a descriptor, a file) it is given when it
    is built and owns from then on. GuestFault from any call ends the machine.
    """

    device_id: ClassVar[int]
    queues: ClassVar[tuple[str, ...]]
    depth: ClassVar[int] = 256  # descriptors in each ring, at most; a power of two
    features: int = 0  # device-specific bits that are offered; the transport adds those of every device
    changed: Callable[[], None] = staticmethod(_nobody)  # set by the transport: call it when ``config`` has changed
    started: Sequence[Queue] = ()

    def config(self) -> bytes:
        """The device's configuration space, as it is now."""
        return b""

    def configure(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space. Most devices have nothing to be written there."""

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """The driver is ready and has agreed to these features; ``queues`` are in the order of their names.

        A queue that the driver has not set up is there and never has chains (``depth`` is zero). A device that gives a
        queue to another back end (vhost) passes ``queue.bell`` and ``queue.line.fd`` on and sets ``queue.carried``.
        """
        self.started = queues

    def notify(self, index: int) -> None:
        """The driver put chains into a queue: ``Queue.serve`` them, then one interrupt (``Queue.signal``)."""

    def stop(self) -> None:
        """The driver reset the device, or the machine ends: forget everything that ``start`` was given."""
        self.started = ()

    def save(self) -> dict[str, bytes]:
        """State of its own beyond configuration and rings, for a machine that goes on elsewhere or later.

        Nothing is written to the guest's memory after it, until ``resume``. The counters of a carried queue are fetched
        from its back end here (``Queue.restore``).
        """
        return {}

    def resume(self) -> None:
        """The machine goes on after it was held still, and perhaps saved."""

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave; ``start`` follows."""

    def close(self) -> None:
        """Give back what it was given when it was built."""
