"""Images in stores of the test's own, against a real registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.engine.images import Images
from tests import peers

Make = Callable[[str], Images]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Images under a data root of the given name."""
    peers.need_root()
    return lambda name: Images(str(tmp_path / name), environment={"HOME": str(tmp_path)})


@pytest.fixture
def images(make: Make) -> Images:
    """Images in an empty store."""
    return make("data")


def consume(steps: object) -> list[str]:
    """What a pull or push said, for its effect."""
    return [step.status for step in steps]  # type: ignore[attr-defined]


def files(root: str) -> list[str]:
    """Every file below a directory, as relative paths."""
    return sorted(
        os.path.relpath(os.path.join(directory, name), root) for directory, _, names in os.walk(root) for name in names
    )
