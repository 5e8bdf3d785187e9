"""A small storm (see tests/stress); the full one is ``python -m tests.stress``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import peers
from tests.stress.__main__ import PROGRAM, ground
from tests.stress.storm import Storm

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    peers.need_root()
    peers.need("busybox")
    base = str(tmp_path_factory.mktemp("storm"))
    ground(base)
    made = Storm(PROGRAM, base, containers=120, alive=40, callers=8, seed=20)
    yield made
    made.clean()


def test_a_storm_leaves_nothing_and_nobody_waits(storm: Storm) -> None:
    storm.run()
    assert not storm.errors
    assert storm.left() == []
    assert storm.most >= 30 and storm.counts["killed"] > 10, "it was no storm"
    assert storm.counts["refused"] == 0
    assert not os.listdir(f"{storm.base}/bundles")
