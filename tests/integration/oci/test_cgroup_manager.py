"""--cgroup-manager and --systemd-cgroup, as callers give them; with a real systemd in the lab, beside runc."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mamushka.container.cgroups.bus import reachable
from tests import peers
from tests.integration.oci.conftest import PROGRAM, Oci

pytestmark = pytest.mark.root
with_systemd = pytest.mark.skipif(not reachable(user=False), reason="systemd is not the first process")
MB = 1 << 20
RESOURCES = {
    "devices": [{"allow": False, "access": "rwm"}],
    "memory": {"limit": 64 * MB, "swap": 80 * MB, "reservation": 32 * MB},
    "cpu": {"shares": 2, "quota": 12_345, "period": 50_000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 50},
    "unified": {"memory.high": str(50 * MB), "cpu.weight": "321"},
}
# What both must have told systemd. Of weights runc 1.1 has another formula, so these are given as they are.
COMPARED = ("Slice", "Delegate", "DefaultDependencies", "MemoryMax", "MemorySwapMax", "MemoryLow", "MemoryHigh",
            "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "CPUWeight", "AllowedCPUs", "AllowedMemoryNodes", "TasksMax",
            "MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting", "TimeoutStopUSec")  # fmt: skip


def limit(oci: Oci, cgroups_path: str) -> None:
    """Give the bundle limits and a scope of this name."""
    path = Path(oci.bundle, "config.json")
    config = json.loads(path.read_text())
    config["linux"] |= {"resources": RESOURCES, "cgroupsPath": cgroups_path}
    config["annotations"] = {"org.systemd.property.TimeoutStopUSec": "uint64 7000000"}
    path.write_text(json.dumps(config))


def shown(unit: str) -> dict[str, str]:
    done = subprocess.run(["systemctl", "show", unit], capture_output=True, text=True, timeout=60, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.skipif(os.path.exists("/run/systemd/private"), reason="systemd runs here")
def test_without_systemd_it_is_refused_with_what_to_choose(oci: Oci) -> None:
    oci.edit("true")
    for flags in (("--systemd-cgroup",), ("--cgroup-manager", "systemd"), ("--cgroup-manager=systemd",)):
        done = oci(*flags, "run", "a")
        assert done.returncode == 1
        assert "cannot make a cgroup by systemd" in done.stderr
        assert "--cgroup-manager cgroupfs" in done.stderr
    assert oci("list", "-q").stdout == ""
    features = json.loads(oci("features").stdout)
    assert features["linux"]["cgroup"]["systemd"] is False


def test_other_managers(oci: Oci) -> None:
    oci.edit("cat", "/proc/self/cgroup")
    done = oci("--cgroup-manager", "disabled", "run", "a")
    assert done.returncode == 0, done.stderr
    assert oci("--systemd-cgroup", "--cgroup-manager", "cgroupfs", "run", "a").returncode == 0
    done = oci("--cgroup-manager", "launchd", "run", "a")
    assert (done.returncode, "'launchd'" in done.stderr) == (1, True)


@pytest.mark.systemd
@with_systemd
def test_systemd_is_told_what_runc_tells_it(oci: Oci, tmp_path: Any, unique: str) -> None:
    peers.need("runc")
    oci.edit("sleep", "60")
    limit(oci, f"a-b.slice:x:{unique}")
    unit = f"x-{unique}.scope"
    told = []
    for program in (peers.find("runc"), PROGRAM):
        words = [program, "--root", f"{tmp_path}/{os.path.basename(program)}", "--systemd-cgroup"]
        with open(tmp_path / "said", "w") as said:  # a pipe would be held open by the container
            done = subprocess.run(
                [*words, "run", "--detach", unique],
                cwd=oci.bundle,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=60,
            )
        assert done.returncode == 0, (tmp_path / "said").read_text()
        told.append(shown(unit))
        subprocess.run(
            [*words, "update", "--memory", str(70 * MB), "--pids-limit", "9", unique], check=True, timeout=60
        )
        after = shown(unit)
        assert (after["MemoryMax"], after["TasksMax"]) == (str(70 * MB), "9")
        subprocess.run([*words[:3], "delete", "--force", unique], check=True, timeout=60)  # without the flag
        assert shown(unit)["LoadState"] == "not-found"
    theirs, ours = ({name: found[name] for name in COMPARED} for found in told)
    assert ours == theirs


@pytest.mark.systemd
@with_systemd
def test_the_command_line_with_systemd(oci: Oci, unique: str) -> None:
    """The flag counts at create alone; what is known of the container is enough for all others."""
    oci.edit("sleep", "60")
    assert oci.quietly("--systemd-cgroup", "create", unique) == 0
    unit = f"mamushka-{unique}.scope"
    assert shown(unit)["ControlGroup"] == f"/system.slice/{unit}"
    assert oci("start", unique).returncode == 0
    assert oci("exec", unique, "echo", "in").stdout == "in\n"
    for verb in ("pause", "resume"):
        assert oci(verb, unique).returncode == 0
    stats = json.loads(oci("events", "--stats", unique).stdout)
    assert stats["data"]["pids"]["current"] == 1
    assert oci("delete", "--force", unique).returncode == 0
    assert shown(unit)["LoadState"] == "not-found"
    assert json.loads(oci("features").stdout)["linux"]["cgroup"]["systemd"] is True
    limit(oci, "/an/ordinary/path")
    done = oci("--systemd-cgroup", "run", "a")
    assert "expected cgroupsPath to be of format slice:prefix:name" in done.stderr  # runc's words, which callers know
