"""What runtime and monitor say to each other, at the lengths that a guest can make it have."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from mamushka import document
from mamushka.errors import Invalid, MamushkaError, NotFound
from mamushka.machine import control
from mamushka.machine.control import PACKET_MAX, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.control import Packet


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    pair = Line.pair()
    yield pair
    for line in pair:
        line.close()


def asked(lines: tuple[Line, Line], packet: Packet) -> object:
    """What a caller gets whom the monitor answers so."""
    ours, theirs = lines

    def answer() -> None:
        assert theirs.receive() == ({"ask": "processes"}, [])
        theirs.reply(packet)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return control.say(ours, {"ask": "processes"})
    finally:
        thread.join()


@pytest.mark.parametrize("count", (0, 1, PACKET_MAX // 40, 20 * PACKET_MAX // 40))
def test_an_answer_has_any_length_that_a_document_may_have(lines: tuple[Line, Line], count: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    processes = [{"pid": number, "command": "sleep infinity"} for number in range(count)]
    assert asked(lines, {"answer": processes}) == processes
    assert len(os.listdir("/proc/self/fd")) <= before  # others of this process may have been collected


def test_a_longer_one_is_an_error_and_not_the_end_of_the_monitor(lines: tuple[Line, Line]) -> None:
    with pytest.raises(Invalid, match="more than"):
        asked(lines, {"answer": "x" * document.SIZE_MAX})


@pytest.mark.parametrize("text", (b"1", b"[]", b'"error"', b"", b"{", b"\xff"))
def test_a_file_that_is_no_answer_is_refused(lines: tuple[Line, Line], text: bytes) -> None:
    """The monitor may have been taken over by its guest."""
    ours, theirs = lines
    fd = control.file_of(text)
    theirs.send({"file": True}, (fd,))
    os.close(fd)
    with pytest.raises(Invalid):
        control.say(ours, {"ask": "processes"})


def test_an_error_always_fits(lines: tuple[Line, Line]) -> None:
    ours, theirs = lines
    for error in (NotFound("\udc80" * PACKET_MAX, hint="\x01" * PACKET_MAX), OSError(2, "x" * PACKET_MAX)):
        theirs.send(control.failed(error))
        with pytest.raises(MamushkaError):
            control.answered(ours.receive()[0])
