"""What limits decide: the same by us and by runc, on the same host and at the same time where time counts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from mamushka.container.cgroups.layout import UNIFIED, layout
from tests import peers
from tests.integration.oci.conftest import PROGRAM, Oci

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.lab]

RUNTIMES = ("ours", "runc")
TOLERANCE = 0.02
QUOTA, PERIOD, PERIODS = 10000, 100000, 100


class Ground:
    """Two runtimes over one bundle's root, each with a cgroup of its own."""

    def __init__(self, oci: Oci, base: str, name: str) -> None:
        self.base, self.rootfs, self.name = base, f"{oci.bundle}/rootfs", name
        with open(f"{oci.bundle}/config.json") as file:
            self.config = json.load(file)
        for applet in ("head", "tail", "dd"):
            os.symlink("busybox", f"{self.rootfs}/bin/{applet}")

    @contextmanager
    def runtime(self, which: str, script: str, resources: dict[str, Any]) -> Iterator[Oci]:
        """A runtime with a bundle that runs a script within limits; what it leaves is deleted."""
        bundle = f"{self.base}/{which}"
        os.makedirs(bundle, exist_ok=True)
        config = json.loads(json.dumps(self.config))
        process = {"terminal": False, "args": ["sh", "-c", script], "capabilities": {}, "rlimits": []}
        config["process"].update(process)
        config["root"] = {"path": self.rootfs, "readonly": False}
        config["linux"]["cgroupsPath"] = self.cgroup(which)
        config["linux"]["resources"] = resources
        with open(f"{bundle}/config.json", "w") as file:
            json.dump(config, file)
        made = Oci(f"{self.base}/state-{which}", bundle, PROGRAM if which == "ours" else peers.find("runc"))
        try:
            yield made
        finally:
            made("delete", "--force", "x")

    def cgroup(self, which: str) -> str:
        return f"/{self.name}-{which}"

    def verdicts(self, script: str, resources: dict[str, Any]) -> list[tuple[int, str]]:
        """(exit code, output) of a script, by each."""
        found = []
        for which in RUNTIMES:
            with self.runtime(which, script, resources) as runtime:
                done = runtime("run", "x")
                found.append((done.returncode, done.stdout))
        return found

    def directory(self, controller: str, which: str) -> str:
        found = layout()
        return (found.unified if found.kind == UNIFIED else found.v1[controller]) + self.cgroup(which)


@pytest.fixture
def ground(oci: Oci, tmp_path: Any, unique: str) -> Ground:
    peers.need("runc")
    found = layout()
    for controller in ("cpu", "memory", "pids"):
        if controller not in {*found.v1, *found.controllers}:
            pytest.skip(f"no controller {controller}")
    return Ground(oci, str(tmp_path), unique)


def _spent(ground: Ground, which: str) -> tuple[int, int, float]:
    """(periods that passed, those that had been used up, seconds of CPU)."""

    def table(path: str) -> dict[str, int]:
        with open(path) as file:
            return {name: int(number) for name, number in (line.split() for line in file)}

    stat = table(ground.directory("cpu", which) + "/cpu.stat")
    if "usage_usec" in stat:
        return stat["nr_periods"], stat["nr_throttled"], stat["usage_usec"] / 1e6
    with open(ground.directory("cpuacct", which) + "/cpuacct.usage") as file:
        return stat["nr_periods"], stat["nr_throttled"], int(file.read()) / 1e9


@pytest.mark.slow
def test_a_cpu_quota_is_met_as_exactly_as_runcs(ground: Ground) -> None:
    """The scheduler's own periods are the clock: a busy host, which leaves some of them unused, changes nothing."""
    resources = {"cpu": {"quota": QUOTA, "period": PERIOD}}
    with ExitStack() as stack:
        for which in RUNTIMES:
            runtime = stack.enter_context(ground.runtime(which, "while :; do :; done", resources))
            assert runtime.quietly("run", "-d", "x") == 0
        time.sleep(0.5)
        before = {which: _spent(ground, which) for which in RUNTIMES}
        deadline = time.monotonic() + 60
        after = before
        while min(after[which][0] - before[which][0] for which in RUNTIMES) < PERIODS and time.monotonic() < deadline:
            time.sleep(0.1)
            after = {which: _spent(ground, which) for which in RUNTIMES}
    for which in RUNTIMES:
        periods, full, seconds = (late - early for late, early in zip(after[which], before[which], strict=True))
        quotas = seconds / (QUOTA / 1e6)
        print(f"{which}: {quotas:.2f} quotas in {periods} periods, {full} of them used up")
        assert periods >= PERIODS and full > periods / 2, "the host is too busy to measure"
        assert (1 - TOLERANCE) * full <= quotas <= (1 + TOLERANCE) * periods, which


@pytest.mark.parametrize("mebibytes", [4, 10, 40, 100])
def test_memory_is_given_or_the_process_killed_as_by_runc(ground: Ground, mebibytes: int) -> None:
    size = mebibytes << 20
    script = f"head -c {size} /dev/zero | tail -c {size} >/dev/null; echo $?"
    limit = 24 << 20
    verdicts = ground.verdicts(script, {"memory": {"limit": limit, "swap": limit}})
    # Which of the two processes it takes is for the kernel to choose: mostly the larger, and then the shell tells.
    expected = ((0, "0\n"),) if mebibytes <= 10 else ((0, "137\n"), (137, ""))
    assert all(verdict in expected for verdict in verdicts), verdicts


def test_a_killed_first_process_is_told_as_runc_tells_it(ground: Ground) -> None:
    script = "s=0123456789abcdef; while :; do s=$s$s; done"
    ours, theirs = ground.verdicts(script, {"memory": {"limit": 16 << 20, "swap": 16 << 20}})
    assert ours == theirs == (137, "")


@pytest.mark.parametrize("limit", [2, 7, 20])
def test_processes_are_counted_as_by_runc(ground: Ground, limit: int) -> None:
    script = "i=1; while [ $i -lt 12 ]; do sleep 1 & i=$((i+1)); echo $i; done 2>/dev/null"
    ours, theirs = ground.verdicts(script, {"pids": {"limit": limit}})
    assert ours == theirs
    assert ours[1].split()[-1:] == [str(min(limit, 12))]


@pytest.mark.slow
def test_reads_are_as_slow_as_by_runc(ground: Ground, tmp_path: Any) -> None:
    """A block device at one MiB a second; blkio.throttle on v1, io.max on v2."""
    if not {"blkio", "io"} & {*layout().v1, *layout().controllers}:
        pytest.skip("no controller for block devices")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    attached = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        number = os.stat(device).st_rdev
        major, minor = os.major(number), os.minor(number)
        ground.config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
        resources = {
            "devices": [{"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"}],
            "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]},
        }
        seconds = {}
        script = "dd if=/dev/disk of=/dev/null bs=65536 count=48 iflag=direct 2>/dev/null"
        for which in RUNTIMES:
            with ground.runtime(which, script, resources) as runtime:
                begun = time.monotonic()
                done = runtime("run", "x")
                assert done.returncode == 0, done.stderr
                seconds[which] = time.monotonic() - begun
        print(seconds)
        # Three MiB; the first may pass at once, and starting the container takes its time too.
        assert all(2.0 < taken < 6.0 for taken in seconds.values()), seconds
        assert abs(seconds["ours"] - seconds["runc"]) < 1.5, seconds
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)
