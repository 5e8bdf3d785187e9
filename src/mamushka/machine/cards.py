"""Cards that come and go while the machine runs: a workload is put into one more network, or taken out of one.

A machine's kernel is told at its boot of a few places more than there are devices (``SPARE``), which look empty. A card
that is plugged in later stands in one of them, and the guest is asked to look there again, as at what is late
(board.py). One that is taken out leaves its place behind: the guest's driver lets go of it, and it looks empty until
the next one comes.

Whoever calls has wired the tap; nothing is opened here, behind the cage. So frames go through this process, not through
vhost-net, which would have to be opened.
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.machine.agent.settings import file
from mamushka.machine.board import SPARE
from mamushka.machine.layers import bind, place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.machine.agent import Agent
    from mamushka.machine.board import Board

_LATER = "card"  # begins the names of places that were taken while it ran
_UNBIND = "/sys/bus/platform/drivers/virtio-mmio/unbind"


class Cards:
    """The cards of one machine. For the thread that asks the agent."""

    def __init__(self, board: Board, agent: Agent) -> None:
        self._board, self._agent = board, agent
        self.changed = False

    def plug(self, question: dict[str, Any]) -> str:
        """Plug a card in: ``mac`` and ``link`` (agent.settings.link) in hexadecimal, ``mtu``; the tap is the one
        descriptor, and closed with the card. Conflict where no place is left, or one has that address."""
        descriptors = question.get("descriptors") or []
        try:
            mac, told = _bytes(question, "mac"), _bytes(question, "link")
            mtu = question.get("mtu")
            if len(descriptors) != 1 or not isinstance(mtu, int):
                raise Invalid("a card is plugged in with a tap and its MTU")
            if self._find(mac):
                raise Conflict(f"there is a card {mac.hex(':')} already")
            name = self._place(descriptors, mac, mtu)
        finally:
            for fd in descriptors:
                os.close(fd)
        try:
            self._agent.steps([bind(self._board, name)])
            self._agent.network([told])
        except BaseException:
            self._vacate(name)
            raise
        trace.event("card.plugged", name=name)
        return name

    def unplug(self, question: dict[str, Any]) -> str:
        """Take the card with the address ``mac`` out. NotFound where there is none."""
        mac = _bytes(question, "mac")
        name = self._find(mac)
        if not name:
            raise NotFound(f"there is no card {mac.hex(':')}")
        self._agent.steps([file(_UNBIND, place(self._board, name).encode(), 0o200)])
        self._vacate(name)
        trace.event("card.unplugged", name=name)
        return name

    def check(self) -> None:
        """Unsupported where the cards are not those that it began with: who goes on from it is made with those."""
        if self.changed:
            raise Unsupported(
                "this machine cannot be saved: it was put into a network, or taken out of one, while it ran",
                hint="restart it first",
            )

    def _place(self, descriptors: list[int], mac: bytes, mtu: int) -> str:
        """Put it somewhere; its place's name. The descriptor is taken out of the list then."""
        from mamushka.machine.devices.virtio.net import Net  # there with the first card: maker.py

        vacant = next((name for name, found in self._board.transports.items() if not found.device.device_id), "")
        later = sum(name.startswith(_LATER) for name in self._board.transports)
        if not vacant and later >= SPARE:
            raise Conflict(
                "the machine has no place for another card: its kernel learns of more only when it boots",
                hint="stop it, connect it, and start it again",
            )
        card = Net(descriptors[0], mac, mtu)
        descriptors.clear()
        self.changed = True
        if vacant:
            self._board.transports[vacant].exchange(card)
            return vacant
        name = f"{_LATER}{later}"
        self._board.add(name, card)
        return name

    def _vacate(self, name: str) -> None:
        from mamushka.machine.devices.virtio.net import Vacant

        self.changed = True
        self._board.transports[name].exchange(Vacant())

    def _find(self, mac: bytes) -> str:
        """The name of the card with this address, or nothing."""
        found = self._board.transports.items()
        return next((name for name, item in found if getattr(item.device, "mac", b"") == mac), "")


def _bytes(question: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(question[name])
    except (KeyError, TypeError, ValueError):
        raise Invalid(f"a card's {name} is {question.get(name)!r}, not bytes in hexadecimal") from None
