"""The suite's last test: the host is as it was before the first one."""

from __future__ import annotations

import warnings

import pytest

from tests import host


def test_nothing_is_left_behind(request: pytest.FixtureRequest, host_before: host.Host) -> None:
    left = host.settled(host_before)
    if left and request.config.getoption("--shared-host"):
        warnings.warn("left behind, by us or by others: " + "; ".join(left), stacklevel=1)
        return
    assert not left, "the suite left behind:\n" + "\n".join(left)


def test_a_difference_is_named() -> None:
    before = host.look()
    after = before._replace(cgroups=before.cgroups | {"/sys/fs/cgroup/pids/mamushka/x"}, mounts=frozenset())
    lines = host.difference(before, after)
    assert "+ cgroups: /sys/fs/cgroup/pids/mamushka/x" in lines
    assert any(line.startswith("- mounts: /proc") for line in lines)
