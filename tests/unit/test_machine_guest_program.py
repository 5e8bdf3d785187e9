"""A guest's first process that was built before its sources changed is told from the one that belongs to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.errors import Unsupported
from mamushka.guest import build
from mamushka.machine.agent.program import guest_program


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("init.c", "guest.h"):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def built(place: Path) -> Path:
    """A program as ``build`` leaves it, of these sources."""
    program = place / "init.x86_64"
    program.write_bytes(b"\x7fELF" + f"{build.MARK}{build.digest(str(place))}".encode())
    return program


def age(path: Path, seconds: int) -> None:
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_none_was_built(place: Path) -> None:
    with pytest.raises(Unsupported, match=r"is missing") as refused:
        guest_program("x86_64", str(place))
    assert "build.py x86_64" in refused.value.hint


def test_a_program_of_these_sources_is_taken_whatever_its_time(place: Path) -> None:
    program = built(place)
    assert guest_program("x86_64", str(place)) == str(program)
    age(program, 100)  # as an installer may leave it
    assert guest_program("x86_64", str(place)) == str(program)


@pytest.mark.parametrize("name", ["init.c", "guest.h"])
def test_a_program_of_older_sources_is_refused(place: Path, name: str) -> None:
    age(built(place), 100)
    (place / name).write_text("another\n")
    with pytest.raises(Unsupported, match=r"not built from its present sources"):
        guest_program("x86_64", str(place))
    built(place)
    guest_program("x86_64", str(place))


def test_a_program_that_says_nothing_of_itself_is_refused(place: Path) -> None:
    program = place / "init.x86_64"
    program.write_bytes(b"\x7fELF")
    age(program, 100)
    with pytest.raises(Unsupported):
        guest_program("x86_64", str(place))
