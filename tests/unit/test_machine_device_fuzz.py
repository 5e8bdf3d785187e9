"""The fuzz targets of devices, for a moment in each run of the unit tests: ``make fuzz`` gives them longer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import devices
from tests.fuzz.__main__ import mutate
from tests.fuzz.targets import TARGETS

NAMES = ("virtio_rng", "virtio_console", "virtio_balloon", "virtio_pmem", "serial")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_mutated_begins_in_order(name: str) -> None:
    assert devices.__doc__ is not None
    assert any(TARGETS[name].run(seed) for seed in TARGETS[name].seeds)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_driver_that_means_harm(name: str, seed: int) -> None:
    TARGETS[name].run(mutate(random.Random(seed), list(TARGETS[name].seeds)))
