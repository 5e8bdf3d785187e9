"""Limits hold in a cgroup that root has delegated to an ordinary user. Where cgroup v2 is all there is: the lab."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.integration.rootless.person import UID, Person

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(
        not os.path.exists("/sys/fs/cgroup/cgroup.controllers"), reason="needs cgroup v2 alone: make lab"
    ),
]
ALONE = ("--network", "none")


@pytest.fixture
def delegated(ordinary: Person, unique: str) -> Iterator[str]:
    """A cgroup that is the user's, with a child in which his commands run; as systemd gives a user's own manager."""
    root = "/sys/fs/cgroup"
    with open(f"{root}/cgroup.subtree_control", "w") as file:
        file.write("+memory +pids +cpu")
    path = f"{root}/{unique}"
    os.makedirs(f"{path}/session")
    for directory in (path, f"{path}/session"):
        os.chown(directory, UID, UID)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(f"{directory}/{name}", UID, UID)
    ordinary.before = [f"echo $$ > {path}/session/cgroup.procs"]
    yield path
    left = ordinary.mamushka("ps", "-aq").stdout.split()
    ordinary.mamushka("rm", "-f", *left)
    ordinary.before = []
    deadline = time.monotonic() + 20
    while True:
        try:
            for directory, _, _ in os.walk(path, topdown=False):
                os.rmdir(directory)
            return
        except OSError:  # a shim is just ending
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_limits_hold(delegated: str, ordinary: Person, name: str) -> None:
    ordinary.good("run", "-d", "--name", name, *ALONE, "--memory", "64m", "--pids-limit", "20", "--cpus", "0.5",
                  "busybox", "sleep", "600")  # fmt: skip
    (group,) = [entry.path for entry in os.scandir(f"{delegated}/mamushka") if entry.is_dir()]
    read = {file: open(f"{group}/{file}").read().split() for file in ("memory.max", "pids.max", "cpu.max")}  # noqa: SIM115
    assert read == {"memory.max": [str(64 << 20)], "pids.max": ["20"], "cpu.max": ["50000", "100000"]}
    pid = ordinary.good("inspect", "-f", "{{.State.Pid}}", name).strip()
    assert pid in open(f"{group}/cgroup.procs").read().split()  # noqa: SIM115
    ordinary.good("update", "--pids-limit", "30", name)
    assert open(f"{group}/pids.max").read() == "30\n"  # noqa: SIM115
    assert json.loads(ordinary.good("stats", "--no-stream", "--format", "json", name))["PIDs"] in ("1", 1)
    ordinary.good("rm", "-f", name)
    assert not os.path.exists(group)


def test_memory_ends_who_takes_too_much(delegated: str, ordinary: Person, name: str) -> None:
    code = "x = bytearray(200 << 20)"
    done = ordinary.mamushka("run", "--name", name, *ALONE, "--memory", "48m", "--memory-swap", "48m", "host",
                             "python3", "-c", code)  # fmt: skip
    assert done.returncode == 137, done.stderr
    assert ordinary.good("inspect", "-f", "{{.State.OOMKilled}}", name) == "true\n"
    ordinary.good("rm", name)


def test_pause(delegated: str, ordinary: Person, name: str) -> None:
    ordinary.good("run", "-d", "--name", name, *ALONE, "busybox", "sleep", "600")
    ordinary.good("pause", name)
    assert "Paused" in ordinary.good("ps")
    ordinary.good("unpause", name)
    assert ordinary.good("exec", name, "echo", "on") == "on\n"
    ordinary.good("rm", "-f", name)


def test_a_workload_outside_the_delegated_part_has_no_limits(ordinary: Person) -> None:
    said = ordinary.bad("run", "--rm", *ALONE, "--memory", "64m", "busybox", "true")
    assert "cannot limit memory" in said and "Delegate=yes" in said


def test_the_doctor_sees_it(delegated: str, ordinary: Person) -> None:
    findings = {item["name"]: item for item in json.loads(ordinary.mamushka("doctor", "--json").stdout)}
    assert findings["cgroup"]["status"] == "ok" and "memory" in findings["cgroup"]["reason"]
