"""The control queue's commands: class, command, what belongs to it; one byte of answer. VIRTIO 1.2, section 5.1.6.5."""

from __future__ import annotations

from mamushka.values import value

RX, VLAN, ANNOUNCE, GUEST_OFFLOADS = 0, 2, 3, 5  # classes
ANNOUNCE_ACK = 0
OFFLOADS_SET = 0
RX_MODES = 6  # promiscuous, allmulti, alluni, nomulti, nouni, nobcast
OK, ERR = 0, 1

# The largest command is eight bytes and its two of header; a driver that sends more means something else.
COMMAND_MAX = 64


@value
class Announced:
    """The driver has told its neighbours where it is."""


@value
class Offloads:
    """The driver takes these unfinished frames from now on: feature bits."""

    bits: int


@value
class Accepted:
    """Nothing has to be done. Filters may let more pass than was asked for, and ours let all pass (5.1.6.5.1)."""


def parse(command: bytes) -> Announced | Offloads | Accepted | None:
    """What a command means; None for one that is not known or not whole, to be answered with an error."""
    if len(command) < 2:
        return None
    kind, number, rest = command[0], command[1], command[2:]
    if kind == RX and number < RX_MODES and len(rest) == 1:
        return Accepted()
    if kind == VLAN and number < 2 and len(rest) == 2:
        return Accepted()
    if kind == ANNOUNCE and number == ANNOUNCE_ACK and not rest:
        return Announced()
    if kind == GUEST_OFFLOADS and number == OFFLOADS_SET and len(rest) == 8:
        return Offloads(int.from_bytes(rest, "little"))
    return None
