"""Cards that come and go: their places, their taps, and what is asked of the guest; the agent is a double."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.machine.agent.settings import link
from mamushka.machine.board import SPARE, Board
from mamushka.machine.cards import Cards
from mamushka.machine.devices.virtio.net import Net
from mamushka.machine.memory import Memory, shared_region

MAC = bytes.fromhex("020000000001")


class Line:
    fd = -1

    def fire(self) -> None:
        pass


class Executor:
    """As much of one as a board needs that never runs."""

    places = ()

    def vcpu(self, index: int) -> Any:
        return self

    def kick(self) -> None:
        pass

    def line(self, gsi: int) -> Line:
        return Line()

    def map(self, region: object) -> None:
        pass

    def doorbell(self, *bell: object) -> bool:
        return True

    def close(self) -> None:
        pass


class Agent:
    """Notes what is written where in the guest, and which links it is told of; may refuse."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.refuses = False

    def steps(self, steps: Any) -> None:
        self.asked += steps
        if self.refuses:
            raise OSError(19, "write")

    def network(self, links: Any) -> None:
        self.asked += links


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board(Executor(), Memory((shared_region(0, 1 << 20),)))  # type: ignore[arg-type]
    made.add("net0", Net(tap(), MAC))
    yield made
    made.close()


taps: list[int] = []


def tap() -> int:
    """A descriptor that can be told from others: of a pipe whose other end notices its close."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    taps.append(reader)
    return writer


@pytest.fixture(autouse=True)
def _none_before() -> Iterator[None]:
    taps.clear()
    yield
    for reader in taps:
        os.close(reader)


def is_closed(number: int) -> bool:
    try:
        return os.read(taps[number], 1) == b""
    except BlockingIOError:
        return False


def question(number: int, **given: Any) -> dict[str, Any]:
    mac = bytes([2, 0, 0, 0, 1, number])
    return {"mac": mac.hex(), "mtu": 1400, "link": link(mac, up=True).hex(), "descriptors": [tap()], **given}


def test_a_card_comes_and_goes_and_the_next_one_takes_its_place(board: Board) -> None:
    agent = Agent()
    cards = Cards(board, agent)  # type: ignore[arg-type]
    cards.check()
    assert cards.plug(question(1)) == "card0"
    card = board.transports["card0"].device
    assert isinstance(card, Net) and (card.mtu, card.carried_by) == (1400, "process")
    assert b"LNRO0005:01" in agent.asked[0] and b"virtio-mmio/bind" in agent.asked[0]
    assert agent.asked[1] == bytes.fromhex(question(1)["link"])
    with pytest.raises(Unsupported, match="while it ran"):
        cards.check()
    assert not is_closed(1)
    assert cards.unplug({"mac": card.mac.hex()}) == "card0"
    assert b"LNRO0005:01" in agent.asked[-1] and b"unbind" in agent.asked[-1]
    assert is_closed(1) and board.transports["card0"].device.device_id == 0
    assert cards.plug(question(2)) == "card0"
    assert len(board.transports) == 2
    with pytest.raises(NotFound, match="no card"):
        cards.unplug({"mac": card.mac.hex()})


def test_one_that_was_there_from_the_beginning_goes_as_well(board: Board) -> None:
    cards = Cards(board, Agent())  # type: ignore[arg-type]
    assert cards.unplug({"mac": MAC.hex()}) == "net0"
    assert is_closed(0)
    assert cards.plug(question(1)) == "net0"


def test_there_are_so_many_places_and_what_is_refused_is_closed(board: Board) -> None:
    cards = Cards(board, Agent())  # type: ignore[arg-type]
    for number in range(SPARE):
        cards.plug(question(number))
    with pytest.raises(Conflict, match="no place"):
        cards.plug(question(9))
    assert is_closed(SPARE + 1)
    with pytest.raises(Conflict, match="already"):
        cards.plug(question(0))
    assert is_closed(SPARE + 2) and not is_closed(1)


@pytest.mark.parametrize(
    "given",
    ({"mac": "zz"}, {"mac": 3}, {"mac": "01"}, {"mtu": "1500"}, {"mtu": 10}, {"link": None}),
)
def test_nonsense_is_refused_and_closed(board: Board, given: dict[str, Any]) -> None:
    cards = Cards(board, Agent())  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        cards.plug(question(1, **given))
    assert is_closed(1) and list(board.transports) == ["net0"]
    with pytest.raises(Invalid):
        cards.plug(question(1, descriptors=[]))


def test_a_guest_that_refuses_it_has_none(board: Board) -> None:
    agent = Agent()
    cards = Cards(board, agent)  # type: ignore[arg-type]
    agent.refuses = True
    with pytest.raises(OSError, match="write"):
        cards.plug(question(1))
    assert is_closed(1) and board.transports["card0"].device.device_id == 0
    agent.refuses = False
    assert cards.plug(question(1)) == "card0"
