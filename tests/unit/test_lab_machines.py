"""Which tests of virtual machines the lab runs again, from what its machines said before they ended."""

from __future__ import annotations

import shlex

import pytest

from tests.lab import __main__ as lab

A, B = (f"tests/integration/machine/test_{name}.py" for name in "ab")
C = "tests/integration/walls/test_c.py"
Machines = tuple[list[tuple[int, str]], list[list[str]]]
ENDED = "============== 1 failed, 2 passed in 12.34s (0:00:12) ==============\n"


def told(path: str, word: str, name: str = "test_it[1]") -> str:
    return f"{path}::{name} {word}        [ 33%]\n"


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """What the machines will end with and say, and what each was asked for."""
    script: list[tuple[int, str]] = []
    asked: list[list[str]] = []

    def attempt(command: str, *, silence: float) -> lab.Attempt:
        asked.append([word for word in shlex.split(command) if word.startswith("tests/")])
        return lab.outcome(*script[len(asked) - 1])

    monkeypatch.setattr(lab, "files", lambda mark: [A, B, C])
    monkeypatch.setattr(lab, "_attempt", attempt)
    return script, asked


def test_all_that_passes_is_asked_for_once(machines: Machines) -> None:
    script, asked = machines
    script += [(0, told(A, "PASSED") + told(B, "SKIPPED") + told(C, "PASSED") + ENDED)]
    assert lab._machines(long=False) == 0
    assert asked == [[A, B, C]]


def test_who_fails_is_tried_once_more_and_then_fails(machines: Machines) -> None:
    script, asked = machines
    failing = f"{B}::test_it[1]"
    script += [(1, told(A, "PASSED") + told(B, "FAILED") + told(C, "PASSED") + ENDED)]
    script += [(1, told(B, "FAILED") + ENDED)]
    assert lab._machines(long=False) == 1
    assert asked == [[A, B, C], [failing]]


@pytest.mark.parametrize("status", [75, 1], ids=["silent", "ended"])
def test_a_machine_that_does_not_come_to_its_end_is_followed_by_another(machines: Machines, status: int) -> None:
    """Also where something had failed before: what nobody ran has not passed."""
    script, asked = machines
    script += [(status, told(A, "FAILED") + told(B, "PASSED"))]
    script += [(0, told(A, "PASSED") + told(B, "PASSED") + told(C, "PASSED") + ENDED)]
    assert lab._machines(long=False) == 0
    assert asked == [[A, B, C], [f"{A}::test_it[1]", B, C]]


def test_machines_that_never_come_to_their_end_fail(machines: Machines) -> None:
    script, asked = machines
    script += [(1, told(A, "PASSED"))] * 4
    assert lab._machines(long=False) == 1
    assert asked == [[A, B, C]] * 4
