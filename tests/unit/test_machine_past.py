"""What is written down of a program, and how a program that goes on is told who it is; the agent is a double."""

from __future__ import annotations

from typing import Any

import pytest

from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.machine import past
from mamushka.machine.agent import words
from mamushka.machine.computer import Interior
from mamushka.machine.inside import MAIN, Streams
from mamushka.machine.past import Past, Program
from mamushka.runtime import NotRunning
from mamushka.spec.runtime import Config

SECRET = b"x" * 16


class Agent:
    """Notes what it is asked; of processes it knows some."""

    def __init__(self, known: tuple[int, ...] = (MAIN,)) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._known = known

    def steps(self, steps: Any, container: int = 0) -> None:
        self.asked.append(("steps", len(list(steps)), container))

    def network(self, links: Any, resolver: int = 0) -> None:
        self.asked.append(("network", len(tuple(links)), resolver > 0))

    def attach(self, process: int, stream: int, source: int, sink: int) -> None:
        self.asked.append(("attach", process, stream, source, sink))
        if stream == words.STDIN:
            raise NotRunning("it had closed it")

    def close_stream(self, process: int, stream: int) -> None:
        self.asked.append(("close", process, stream))
        if process not in self._known:
            raise NotRunning("it has ended")


def interior(**given: Any) -> Interior:
    return Interior(Config("1.2.0", hostname="me"), "/run/root", **given)


def labels(**given: Any) -> dict[str, str]:
    made = Program(None, interior(cards=(b"abcdef",), sources={"/etc/hosts": "/run/files/0"}), None)  # type: ignore[arg-type]
    for key in (2, 3):
        made.begun(made.name(key))
    made.ended(2)
    return {**made.labels(SECRET, frozen=True), **given}


def test_what_is_written_is_read() -> None:
    written = labels()
    assert past.token(written) == SECRET
    assert past.card(written, 0, b"") == b"abcdef" and past.card(written, 1, b"fedcba") == b"fedcba"
    assert Past.of(written) == Past(True, False, False, (3,), 3, {"/etc/hosts": "/run/files/0"})
    assert Past.of({"token": SECRET.hex()}) is None, "a warm machine has no program"


@pytest.mark.parametrize(
    "given",
    [
        {"further": "2 x"}, {"further": None}, {"last": ""}, {"program": "asleep"}, {"further": "1 " * 5000},
    ],
)  # fmt: skip
def test_damaged_labels(given: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="damaged"):
        Past.of(labels(**given))


def test_a_damaged_secret_or_card() -> None:
    with pytest.raises(Invalid, match="secret is damaged"):
        past.token({"token": "xyz"})
    with pytest.raises(Invalid, match="card 0 is damaged"):
        past.card({"net0": 7}, 0, b"")  # type: ignore[dict-item]
    cut = labels()
    del cut["terminal"]
    with pytest.raises(Invalid, match="damaged"):
        Past.of(cut)


def test_another_processor_is_refused() -> None:
    with pytest.raises(Unsupported, match="another kind of processor"):
        past.check_host(labels(processor="other"))
    made = Program(None, interior(disks=(9,)), None)  # type: ignore[arg-type]
    past.check_host(made.labels(SECRET, frozen=True))


def test_names_that_were_given_away_are_not_given_again() -> None:
    """Also over generations: each monitor counts from the beginning."""
    found, taken = labels(), {MAIN, 2, 3}
    for _ in range(3):
        made = Program(None, interior(), Past.of(found))  # type: ignore[arg-type]
        assert made.name(MAIN) == MAIN
        for key in (2, 3):
            name = made.name(key)
            assert name not in taken
            taken.add(name)
            made.begun(name)
        found = dict(made.labels(SECRET, frozen=True))
    assert Past.of(found).last == max(taken)  # type: ignore[union-attr]
    assert set(Past.of(found).further) == taken - {MAIN, 2}  # type: ignore[union-attr]


def test_who_it_is_comes_before_its_streams() -> None:
    agent = Agent(known=())
    known = Past.of(labels())
    assert known is not None
    Program(None, interior(links=(b"link",)), known).come_back(agent, known, Streams(5, 6, 7))  # type: ignore[arg-type]
    assert agent.asked == [
        ("steps", 0, 0),
        ("steps", 1, MAIN),  # its name
        ("network", 1, False),
        *(("close", 3, stream) for stream in (words.STDIN, words.STDOUT, words.STDERR, words.TTY)),
        ("attach", MAIN, words.STDIN, 5, -1),
        ("attach", MAIN, words.STDOUT, -1, 6),
        ("attach", MAIN, words.STDERR, -1, 7),
    ]


def test_a_terminal_needs_a_terminal() -> None:
    known = Past.of(labels(terminal="yes"))
    assert known is not None
    made = Program(None, interior(), known)  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="saved with a terminal"):
        made.come_back(Agent(), known, Streams(5, 6, 7))  # type: ignore[arg-type]
    agent = Agent()
    made.come_back(agent, known, Streams(console=9))  # type: ignore[arg-type]
    assert agent.asked[-1] == ("attach", MAIN, words.TTY, 9, 9)


def test_a_resolver_that_serves_already_is_not_begun_again() -> None:
    for before, wanted in (("yes", False), ("no", True)):
        known = Past.of(labels(resolver=before))
        assert known is not None
        agent = Agent()
        made = Program(None, interior(resolver=(4,)), known)  # type: ignore[arg-type]
        made.come_back(agent, known, Streams(-1, -1, -1))  # type: ignore[arg-type]
        assert ("network", 0, wanted) in agent.asked
        assert made.labels(SECRET, frozen=False)["resolver"] == "yes"
