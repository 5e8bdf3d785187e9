"""``--cgroup-manager disabled``: the container stays where its caller is, and nothing is promised that needs more."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.container.cgroups.cgroup import DISABLED
from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import DeviceRule, Memory, Resources
from tests.integration.container.conftest import Ground

pytestmark = pytest.mark.root


@pytest.fixture
def ground(tmp_path: Any, rootfs: str, unique: str) -> Iterator[Ground]:
    """Ground whose containers get no cgroup."""
    made = Ground(str(tmp_path / "state"), rootfs, unique, DISABLED)
    yield made
    made.clean()


def own_cgroups(pid: int | str = "self") -> str:
    with open(f"/proc/{pid}/cgroup") as file:
        return file.read()


def test_it_stays_in_its_callers_cgroups(ground: Ground) -> None:
    """Through a whole life, in which later commands know it from the record."""
    resources = Resources(devices=(DeviceRule(allow=False, access="rwm"),))  # these come with every bundle
    started = ground.start(ground.config("sleep 60", linux={"resources": resources}))
    assert own_cgroups(started.pid) == own_cgroups()
    assert ground.exec("echo in") == (0, "in\n")
    later = Ground(ground.state, ground.rootfs, ground.name).runtime
    assert later.state(ground.name).status == "running"
    with pytest.raises(Unsupported):
        later.pause(ground.name)
    later.kill(ground.name, signal.SIGKILL)
    later.delete(ground.name, force=True)
    assert [*later.list()] == []


def test_limits_are_refused(ground: Ground) -> None:
    with pytest.raises(Unsupported, match="no cgroup") as raised:
        ground.start(ground.config("true", linux={"resources": Resources(memory=Memory(limit=1 << 24))}))
    assert "--cgroup-manager" in raised.value.hint
    ground.start(ground.config("sleep 60"))
    with pytest.raises(Unsupported, match="no cgroup"):
        ground.runtime.update(ground.name, Resources(memory=Memory(limit=1 << 24)))


def test_an_unknown_manager_is_named(ground: Ground) -> None:
    other = Ground(ground.state, ground.rootfs, ground.name, "launchd")
    with pytest.raises(Invalid, match="'launchd'") as raised:
        other.start(other.config("true"))
    assert "cgroupfs, systemd, disabled" in raised.value.hint
