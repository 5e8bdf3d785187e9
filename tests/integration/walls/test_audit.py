"""What an audit finds that a workload can reach: in a machine nothing that it does not reach in a container."""

from __future__ import annotations

import json

import pytest

from tests.integration.audit import scores
from tests.integration.walls.conftest import Wall

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]

# What it may take is what its machine was made with.
BOUNDED = {"process-limit", "memory-limit", "time-limit"}


def test_what_the_default_box_reaches(wall: Wall) -> None:
    done = wall("audit", *wall.behind, *scores.ALONE, "--json")
    assert done.returncode == 0, done.stderr.decode()
    (report,) = json.loads(done.stdout)["reports"]
    assert report["runtime"] == wall.name
    reached = {item["probe"] for item in report["findings"] if item["reached"]}
    assert reached == scores.DEFAULT - scores.NETWORK - (BOUNDED if wall.is_machine else set()), report
    assert wall("ps", "-aq").stdout == b"", "the probe's workload is removed"
