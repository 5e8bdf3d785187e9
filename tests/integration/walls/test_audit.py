"""What an audit finds that a workload can reach: in a machine nothing that it does not reach in a container."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.walls.conftest import Wall

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(wall: Wall) -> dict[str, Any]:
    done = wall("audit", *wall.behind, "--network", "none", "--json")
    assert done.returncode == 0, done.stderr.decode()
    (report,) = json.loads(done.stdout)["reports"]
    return dict(report)


def test_it_is_of_that_wall(wall: Wall, found: dict[str, Any]) -> None:
    assert found["runtime"] == wall.name
    assert wall("ps", "-aq").stdout == b""
