"""Cgroups by systemd: the scope has the bundle's limits, holds the container, and goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka import trace
from mamushka.container.cgroups import scope
from mamushka.container.cgroups.bus import connect, reachable
from mamushka.container.cgroups.cgroup import SYSTEMD
from mamushka.container.cgroups.layout import layout
from mamushka.errors import Conflict, Invalid, MamushkaError, Unsupported
from mamushka.runtime import CommandNotFound, Stdio
from mamushka.spec.runtime import CPU, DeviceRule, Memory, Pids, Resources
from mamushka.values import replace
from tests.integration.container.conftest import Ground

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.skipif(not reachable(user=False), reason="systemd is not the first process"),
]
MB = 1 << 20
LIMITS = Resources(
    devices=(DeviceRule(allow=False, access="rwm"),),
    memory=Memory(limit=64 * MB, reservation=32 * MB, swap=96 * MB),
    cpu=CPU(shares=512, quota=25_555, period=50_000, cpus="0", mems="0"),
    pids=Pids(33),
    unified={"memory.high": str(48 * MB), "hugetlb.2MB.max": "0"},
)


@pytest.fixture
def ground(tmp_path: Any, rootfs: str, unique: str) -> Iterator[Ground]:
    """Ground whose containers are in scopes."""
    made = Ground(str(tmp_path / "state"), rootfs, unique, SYSTEMD)
    yield made
    made.clean()


def shown(unit: str) -> dict[str, str]:
    """A unit's properties as systemctl tells them."""
    words = ["systemctl", "show", unit]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def unit_of(ground: Ground) -> str:
    return f"mamushka-{ground.name}.scope"


def left(ground: Ground) -> list[str]:
    """What there is of its unit, its cgroup, its record and the holder; empty once systemd has noticed the end."""
    deadline = time.monotonic() + 10
    while True:
        words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", f"*{ground.name}*"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")[:-1]
        found += [path for path in (f"{layout().unified}/system.slice/{unit_of(ground)}",) if os.path.exists(path)]
        found += os.listdir(ground.state) if os.path.isdir(ground.state) else []
        found += [pid for pid in os.listdir("/proc") if pid.isdigit() and _name(pid) == "mamushka-scope"]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def test_the_scope_has_the_limits_of_the_bundle(ground: Ground) -> None:
    """In systemd's mind, and exactly in the files."""
    config = ground.config("sleep 60", linux={"resources": LIMITS, "cgroups_path": f"a-b.slice:x:{ground.name}"})
    ground.start(replace(config, annotations={"org.systemd.property.TimeoutStopUSec": "uint64 5000000"}))
    unit = f"x-{ground.name}.scope"
    found = shown(unit)
    wanted = {
        "ActiveState": "active", "Slice": "a-b.slice", "ControlGroup": f"/a.slice/a-b.slice/{unit}", "Delegate": "yes",
        "DefaultDependencies": "no", "Description": f"mamushka container {ground.name}", "MemoryMax": str(64 * MB),
        "MemoryLow": str(32 * MB), "MemorySwapMax": str(32 * MB), "MemoryHigh": str(48 * MB), "TasksMax": "33",
        "CPUQuotaPerSecUSec": "520ms", "CPUQuotaPeriodUSec": "50ms", "AllowedCPUs": "0", "AllowedMemoryNodes": "0",
        "MemoryAccounting": "yes", "CPUAccounting": "yes", "IOAccounting": "yes", "TasksAccounting": "yes",
        "TimeoutStopUSec": "5s",
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    directory = f"{layout().unified}/a.slice/a-b.slice/{unit}"
    files = {"memory.max": str(64 * MB), "memory.high": str(48 * MB), "memory.low": str(32 * MB), "pids.max": "33",
             "memory.swap.max": str(32 * MB), "cpu.max": "25555 50000", "cpuset.cpus": "0", "hugetlb.2MB.max": "0",
             "cpu.weight": found["CPUWeight"]}  # fmt: skip
    for name, text in files.items():
        with open(f"{directory}/{name}") as file:
            assert file.read().strip() == text, name
    ground.runtime.delete(ground.name, force=True)
    assert left(ground) == []


def test_a_life_in_a_scope(ground: Ground) -> None:
    """create, start, exec, pause, resume, stats, kill, delete: each acts on the scope, by another runtime object."""
    ground.create(ground.config("sleep 60"))
    later = Ground(ground.state, ground.rootfs, ground.name).runtime  # knows of no manager
    later.start(ground.name)
    assert shown(unit_of(ground))["ControlGroup"] == f"/system.slice/{unit_of(ground)}"
    assert ground.exec("cat /proc/self/cgroup") == (0, "0::/\n")
    (pid,) = later.processes(ground.name)
    with open(f"/proc/{pid}/cgroup") as file:
        assert file.read() == f"0::/system.slice/{unit_of(ground)}\n"
    later.pause(ground.name)
    assert later.state(ground.name).status == "paused"
    later.resume(ground.name)
    assert later.stats(ground.name).pids == 1
    later.kill(ground.name, signal.SIGKILL)
    later.delete(ground.name, force=True)
    assert left(ground) == []


def test_a_memory_limit_holds(ground: Ground) -> None:
    """And the unit that failed by it is forgotten, so that the name can be used again."""
    config = ground.config(
        "busybox head -c 30m /dev/zero | busybox tail >/dev/null; exit 7",
        linux={"resources": Resources(memory=Memory(limit=10 * MB, swap=10 * MB))},
    )
    for _ in range(2):
        assert ground.run(config) == (7, "Killed\n")
        assert left(ground) == []


def test_update_reaches_systemd_and_the_files(ground: Ground) -> None:
    ground.start(ground.config("sleep 60", linux={"resources": LIMITS}))
    cpu = CPU(quota=10_001, period=100_000)
    ground.runtime.update(ground.name, Resources(memory=Memory(limit=80 * MB), cpu=cpu, pids=Pids(44)))
    found = shown(unit_of(ground))
    assert (found["MemoryMax"], found["CPUQuotaPerSecUSec"], found["TasksMax"]) == (str(80 * MB), "110ms", "44")
    with open(f"{layout().unified}/system.slice/{unit_of(ground)}/cpu.max") as file:
        assert file.read() == "10001 100000\n"
    # What systemd believes is what it writes when it reloads, but for a quota's fraction.
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)
    stats = ground.runtime.stats(ground.name)
    assert (stats.memory_limit, stats.pids_limit) == (80 * MB, 44)
    # Device rules are ours alone, and stay in force.
    _, said = ground.exec("busybox mknod /tmp/loops c 10 237; cat </tmp/loops; cat </dev/null && echo fine")
    assert "Operation not permitted" in said
    assert said.endswith("\nfine\n")


def test_a_unit_in_use_is_a_conflict_and_stays(ground: Ground) -> None:
    config = ground.config("sleep 60")
    ground.start(config)
    other = Ground(ground.state, ground.rootfs, f"{ground.name}b", SYSTEMD)
    assert config.linux
    same = replace(config, linux=replace(config.linux, cgroups_path=f":mamushka:{ground.name}"))
    with pytest.raises(Conflict, match="already"):
        other.start(same)
    assert ground.runtime.state(ground.name).status == "running"
    assert shown(unit_of(ground))["ActiveState"] == "active"
    ground.runtime.delete(ground.name, force=True)
    assert left(ground) == []


def test_what_cannot_be_a_scope_is_refused_before_anything_is_made(ground: Ground) -> None:
    for path in [
        "/a/b",
        "a.slice:b",
        "../a.slice:b:c",
        "a..b.slice:b:c",
        "a.slice:b:../c",
        "a:b:c",
        "a.slice:b:c.slice",
    ]:
        with pytest.raises(Invalid):
            ground.start(ground.config("true", linux={"cgroups_path": path}))
    with pytest.raises(Invalid, match="Slice"):
        ground.start(replace(ground.config("true"), annotations={"org.systemd.property.Slice": "'x.slice'"}))
    with pytest.raises(MamushkaError, match="NoSuchThing"):
        ground.start(replace(ground.config("true"), annotations={"org.systemd.property.NoSuchThing": "true"}))
    with pytest.raises(CommandNotFound):
        ground.start(ground.config("/no/such/program", "x"))
    assert left(ground) == []


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_creator_killed_at_every_step_leaves_what_delete_repairs(ground: Ground, verb: str) -> None:
    for number in range(100):
        creator, told = killed_at(ground, number, verb)
        ground.runtime.delete(ground.name, force=True)
        assert left(ground) == [], f"killed at event {number}: {told}"
        if not creator:
            assert number > 12
            return
    raise AssertionError("the creator never finished")


def killed_at(ground: Ground, number: int, verb: str) -> tuple[bool, str]:
    """(whether a creator was killed before its n-th event, that event). A fork: an interpreter's start is slow here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        seen = 0

        def die(event: str, fields: dict[str, object]) -> None:
            nonlocal seen
            if event == "plan.inside":  # nothing happens in between
                return
            if seen == number:
                os.write(writing, f"{event} {fields}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        try:
            trace.subscribe(die)
            make = ground.runtime.create if verb == "create" else ground.runtime.run
            started = make(ground.name, ground.bundle(ground.config("sleep 60")), Stdio())
            os.kill(started.pid, signal.SIGKILL)
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    told = os.read(reading, 4096).decode()
    os.close(reading)
    assert status in (0, signal.SIGKILL)
    return status != 0, told


def test_the_bus_serves_where_the_managers_own_socket_cannot_be_reached(monkeypatch: Any, ground: Ground) -> None:
    places = [("/run/dbus/system_bus_socket", False)]
    monkeypatch.setattr("mamushka.container.cgroups.bus._places", lambda *, user: places)
    bus = connect(user=False)
    assert str(bus.fact("Version")).startswith("2")
    bus.close()
    assert ground.output(ground.config("echo here")) == "here\n"
    assert left(ground) == []


def test_without_a_manager_it_is_refused_with_what_to_choose(monkeypatch: Any, ground: Ground) -> None:
    monkeypatch.setattr(scope.os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with pytest.raises(Unsupported, match="no session") as raised:
        ground.start(ground.config("true"))
    assert "cgroupfs" in raised.value.hint
