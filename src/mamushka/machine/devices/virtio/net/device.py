"""A network card on a tap. VIRTIO 1.2, section 5.1.

The tap speaks the driver's own language: each frame begins with a virtio_net_hdr, so checksums and segmentation are
agreed on with the driver and done by whoever is last, the host's real card at best, or nobody where a frame stays on
this host. Frames are moved by vhost-net where the kernel has it (carrier.py), else here (frames.py).
"""

from __future__ import annotations

import os
from struct import Struct

from mamushka.errors import Invalid
from mamushka.linux import vhost
from mamushka.linux.tun import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUNSETOFFLOAD
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.net import control
from mamushka.machine.devices.virtio.net.carrier import Carrier
from mamushka.machine.devices.virtio.net.frames import Counts, Receiver, Sender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory

# 5.1.3. Bits that begin with GUEST_ are what the driver takes, with HOST_ what we take, unfinished. No UFO: since Linux
# 4.14 nobody segments so.
CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 0, 1, 2, 3, 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN = 7, 8, 9, 11, 12, 13
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, GUEST_ANNOUNCE = 15, 16, 17, 18, 19, 21
_FEATURES = (
    CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN,
    MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, GUEST_ANNOUNCE,
)  # fmt: skip
# What the driver takes, in the tap's words. They are the only offloads that can be changed while it runs.
_OFFLOADS = {GUEST_CSUM: TUN_F_CSUM, GUEST_TSO4: TUN_F_TSO4, GUEST_TSO6: TUN_F_TSO6, GUEST_ECN: TUN_F_TSO_ECN}

LINK_UP, ANNOUNCE = 1, 2  # status
MTU_MIN, MTU_MAX = 68, 65521  # RFC 791; what Linux gives a tap at most, without its Ethernet header
RX, TX, CONTROL = 0, 1, 2

_CONFIG = Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu
_SAVED = Struct("<HQ")  # status, offloads


class Net(Device):
    """Frames to and from a tap, which it owns. ``tap`` has headers of 12 bytes and does not wait."""

    device_id: ClassVar[int] = 1
    queues: ClassVar[tuple[str, ...]] = ("receiveq1", "transmitq1", "controlq")

    def __init__(self, tap: int, mac: bytes, mtu: int = 1500, *, memory: Memory | None = None) -> None:
        """``memory`` is the machine's: with it vhost-net carries the frames, where there is one (``carried_by``)."""
        if len(mac) != 6 or mac[0] & 1:
            raise Invalid(f"{mac.hex(':')} is not the hardware address of a network card")
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise Invalid(f"an MTU of {mtu} bytes: {MTU_MIN} to {MTU_MAX}")
        self.tap, self.mac, self.mtu = tap, mac, mtu
        self.features = sum(1 << bit for bit in _FEATURES)
        self.counts = Counts()  # of frames that come through here; those that vhost carries are counted by the tap
        self._status, self._offloads = LINK_UP, 0
        self._restored: int | None = None  # what the driver had changed its offloads to, of a machine that goes on
        self._agreed = 0
        self._loop: Loop | None = None
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        fd = vhost.open_net() if memory is not None else -1
        self._carrier = Carrier(fd, memory) if memory is not None and fd >= 0 else None

    @property
    def carried_by(self) -> str:
        """Who moves the frames: ``vhost-net``, or this ``process``."""
        return "process" if self._carrier is None else "vhost-net"

    def config(self) -> bytes:
        """5.1.4."""
        return _CONFIG.pack(self.mac, self._status, 1, self.mtu)

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        super().start(queues, features, loop)
        self._agreed, self._loop = features, loop
        self._set_offloads(features if self._restored is None else self._restored)
        self._restored = None
        if self._carrier is not None:
            self._carrier.start(self.tap, queues[:CONTROL], features, loop)
            return
        mergeable = bool(features >> MRG_RXBUF & 1)
        self._receiver = Receiver(self.tap, queues[RX], loop, self.counts, mergeable=mergeable)
        self._sender = Sender(self.tap, queues[TX], self.counts)

    def notify(self, index: int) -> None:
        if index == CONTROL:
            self._control(self.started[CONTROL])
        elif index == RX and self._receiver is not None:
            self._receiver.refilled()
        elif index == TX and self._sender is not None:
            self._sender.serve()

    def stop(self) -> None:
        if self._carrier is not None:
            self._carrier.stop()
        if self._receiver is not None:
            self._receiver.stop()
        self._receiver = self._sender = self._loop = None
        self._status &= ~ANNOUNCE
        super().stop()

    # Control

    def _control(self, queue: Queue) -> None:
        for chain in queue.serve():
            length = chain.readable_length
            command = chain.take(length) if length <= control.COMMAND_MAX else b""
            queue.push(chain, chain.fill(bytes([self._perform(command)])))
        queue.signal()

    def _perform(self, command: bytes) -> int:
        """One command; its answer."""
        asked = control.parse(command)
        if isinstance(asked, control.Offloads):
            if asked.bits & ~sum(1 << bit for bit in _OFFLOADS):
                return control.ERR
            self._set_offloads(asked.bits)
        elif isinstance(asked, control.Announced):
            self._status &= ~ANNOUNCE
            self.changed()
        return control.ERR if asked is None else control.OK

    def _set_offloads(self, bits: int) -> None:
        """What the driver takes unfinished. Segments without checksums would be nonsense, to the tap as well."""
        self._offloads = bits & sum(1 << bit for bit in _OFFLOADS)
        flags = sum(flag for bit, flag in _OFFLOADS.items() if bits >> bit & 1)
        if not flags & (TUN_F_TSO4 | TUN_F_TSO6):
            flags &= TUN_F_CSUM
        TUNSETOFFLOAD(self.tap, flags if flags & TUN_F_CSUM else 0)

    # From outside, in the loop's thread

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it."""
        self._status = self._status & ~LINK_UP | (LINK_UP if up else 0)
        self.changed()

    def announce(self) -> None:
        """Ask the driver to tell its neighbours where it is: it goes on elsewhere. 5.1.6.5.4."""
        self._status |= ANNOUNCE
        self.changed()

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """Frames wait in the tap from now on, until ``resume``: the guest's memory stays as it was saved."""
        if self._carrier is not None:
            self._carrier.stop()
        if self._receiver is not None:
            self._receiver.stop()
        return {"net": _SAVED.pack(self._status, self._offloads)}

    def resume(self) -> None:
        if self._carrier is not None and self._loop is not None and not self._carrier.running:
            self._carrier.start(self.tap, self.started[:CONTROL], self._agreed, self._loop)
        if self._receiver is not None:
            self._receiver.refilled()

    def restore(self, state: Mapping[str, bytes]) -> None:
        raw = state.get("net", b"")
        if len(raw) != _SAVED.size:
            raise Invalid(f"the state of a network card has {len(raw)} bytes instead of {_SAVED.size}")
        self._status, self._restored = _SAVED.unpack(raw)
        if self._restored & ~sum(1 << bit for bit in _OFFLOADS):
            raise Invalid(f"the state of a network card has offloads {self._restored:#x} that there are not")

    def close(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        os.close(self.tap)
