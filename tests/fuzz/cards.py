"""The network card's rings, and what a vhost-user back end answers."""

from __future__ import annotations

import _socket
import struct

from mamushka.errors import Unavailable
from mamushka.machine.devices.virtio.frontend import Frontend
from mamushka.machine.devices.virtio.net import Net
from mamushka.machine.devices.virtio.net import device as module
from mamushka.machine.devices.virtio.queue import NEXT, WRITE
from tests.fuzz.devices import _asked, _drive, _poke
from tests.fuzz.targets import target

MAC = bytes.fromhex("02aabbccddee")


@target(
    _asked(0, *[(0x40000 + 2048 * turn, 2048, WRITE) for turn in range(4)]) + b"h",
    _asked(0, (0x40000, 0x18000, WRITE)) + b"hh" + _asked(1, (0x1000, 12, 0), (0x1010, 60, 0)),
    _asked(0, (0x40000, 16, WRITE), (0x50000, 40, WRITE))
    + b"h"
    + _asked(0, (0x60000, 0x9000, WRITE), position=2)
    + b"h",
    _asked(1, (0x1000, 0xFFFF, 0), (0x20000, 0xFFFF, NEXT)),
    _asked(2, (0x1000, 10, 0), (0x2000, 1, WRITE), before=_poke(0x1000, struct.pack("<BBQ", 5, 0, 0x82))),
    _asked(2, (0x1000, 3, 0), (0x2000, 1, WRITE), before=_poke(0x1000, b"\x03\0\0")),
)
def virtio_net(raw: bytes) -> bool:
    """any rings and commands of a network card are served or end the guest, and frames come or are counted as lost"""
    setattr(module, "TUNSETOFFLOAD", lambda fd, flags: None)  # noqa: B010  a pair of sockets has none
    cable, tap = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    cable.setblocking(False)
    tap.setblocking(False)
    card = Net(tap.detach(), MAC)
    sizes = iter((60, 1500, 60000, 200, 9000) * 100)

    def host() -> None:
        try:
            cable.send(bytes(12 + next(sizes, 60)))
        except BlockingIOError:
            pass
        if card._receiver is not None:
            card._receiver._ready(1)
            assert card._receiver._free == sum(chain.writable_length for chain in card._receiver._room)

    try:
        return _drive(card, raw, host)
    finally:
        cable.close()


def _answer(request: int, payload: bytes) -> bytes:
    return struct.pack("<III", request, 5, len(payload)) + payload


@target(
    _answer(1, struct.pack("<Q", 1 << 30 | 1 << 32)) + _answer(15, struct.pack("<Q", 8)),
    _answer(1, struct.pack("<Q", 1 << 32)),
    _answer(1, b""),
)
def vhost_user(raw: bytes) -> bool:
    """any answers of a back end are understood, or it is given up as unavailable"""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        theirs.send(raw[:65536])
        theirs.shutdown(_socket.SHUT_WR)
        Frontend(ours, "the back end")
        return True
    except Unavailable:
        return False
    finally:
        ours.close()
        theirs.close()
