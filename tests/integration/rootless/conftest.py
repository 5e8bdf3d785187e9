"""Two ordinary users, one with subordinate ids and one without; and a world behind a link for their workloads."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import peers
from tests.integration.rootless.person import Person
from tests.integration.rootless.world import World

KINDS = ("many ids", "one id")


@contextmanager
def somebody(*, ids: bool) -> Iterator[Person]:
    """A user until the block ends; then none of his processes and files are left."""
    peers.need_root()
    peers.need("newuidmap")
    home = tempfile.mkdtemp(prefix="mamushka-person-")  # not below pytest's, which only root may enter
    person = Person(home, ids=ids)
    try:
        yield person
    finally:
        left = person.mamushka("ps", "-aq").stdout.split()
        if left:
            person.mamushka("rm", "-fv", *left)
        for pid in person.processes():
            os.kill(pid, 9)
        shutil.rmtree(home)


@pytest.fixture(scope="module", params=KINDS)
def person(request: pytest.FixtureRequest, busybox_reference: str) -> Iterator[Person]:
    """Each of the two users, with the image BUSYBOX."""
    with somebody(ids=request.param == KINDS[0]) as person:
        person.good("pull", "-q", busybox_reference)
        person.good("tag", busybox_reference, "busybox")
        yield person


@pytest.fixture(scope="module")
def ordinary(busybox_reference: str) -> Iterator[Person]:
    """The user with subordinate ids, with the image ``busybox``."""
    with somebody(ids=True) as person:
        person.good("pull", "-q", busybox_reference)
        person.good("tag", busybox_reference, "busybox")
        yield person


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Another machine, at the other end of a link, by which the default route goes."""
    peers.need_root()
    peers.need("ip")
    with World() as world:
        yield world


@pytest.fixture
def name(unique: str) -> str:
    """A workload's name."""
    return unique


def said(*command: str) -> str:
    """A program's output."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
