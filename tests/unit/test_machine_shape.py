"""From a bundle to a machine's shape, and what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container import defaults
from mamushka.errors import Invalid, Unsupported
from mamushka.machine import shape
from mamushka.machine.shape import MIB, Shape
from mamushka.spec.runtime import (
    CPU,
    Config,
    Device,
    DeviceRule,
    Hook,
    Hooks,
    HugepageLimit,
    IDMapping,
    IntelRdt,
    Linux,
    Memory,
    Namespace,
    Pids,
    Process,
    Resources,
    Seccomp,
)
from mamushka.values import replace


def config(**linux: Any) -> Config:
    return Config("1.2.0", Process(args=("true",)), linux=Linux(namespaces=defaults.NAMESPACES, **linux))


@pytest.mark.parametrize(
    ("cpu", "cpus"),
    [
        (None, 1),
        (CPU(quota=150_000, period=100_000), 2),
        (CPU(quota=100_000), 1),
        (CPU(quota=1), 1),
        (CPU(quota=-1), 1),
        (CPU(cpus="0-3,7"), 5),
        (CPU(cpus="0-3", quota=200_000), 2),
        (CPU(shares=512), 1),
    ],
)
def test_a_limit_of_cpu_time_is_a_number_of_processors(cpu: CPU | None, cpus: int) -> None:
    assert shape.shape(config(resources=Resources(cpu=cpu))).cpus == cpus


@pytest.mark.parametrize(
    ("limit", "memory"), [(None, 512 * MIB), (-1, 512 * MIB), (256 * MIB, 256 * MIB), (101 * MIB, 100 * MIB)]
)
def test_a_limit_of_memory_is_its_size(limit: int | None, memory: int) -> None:
    assert shape.shape(config(resources=Resources(memory=Memory(limit=limit)))).memory == memory


def test_what_has_no_limit_is_as_the_host_has_it() -> None:
    assert shape.shape(config(), Shape(4, 2 << 30)) == Shape(4, 2 << 30)


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=Memory(limit=20 * MIB)),
        Resources(memory=Memory(limit=1 << 50)),
        Resources(cpu=CPU(cpus="0-4000")),
        Resources(cpu=CPU(cpus="x")),
        Resources(cpu=CPU(quota=1 << 40)),
    ],
)
def test_no_machine_is_that_small_or_large(resources: Resources) -> None:
    with pytest.raises(Invalid):
        shape.shape(config(resources=resources))


@given(st.text(alphabet="0123456789,- x", max_size=30))
def test_any_list_of_processors_is_a_number_or_refused(text: str) -> None:
    try:
        assert 1 <= shape.shape(config(resources=Resources(cpu=CPU(cpus=text)))).cpus <= shape.CPUS_MAX
    except Invalid:
        pass


def test_the_monitors_cgroup_has_room_for_the_monitor_and_its_own_devices_alone() -> None:
    asked = Resources(memory=Memory(limit=256 * MIB), pids=Pids(limit=10), devices=(DeviceRule(True, access="rwm"),))
    found = shape.outside(config(resources=asked))
    assert found.memory == Memory(limit=256 * MIB + shape.OVERHEAD)
    assert found.pids == Pids(limit=10 + shape.TASKS_MORE)
    assert found.devices[0] == DeviceRule(False, access="rwm")
    assert all(rule.type == "c" and rule.access == "rw" for rule in found.devices[1:])


def without(kind: str) -> tuple[Namespace, ...]:
    return tuple(item for item in defaults.NAMESPACES if item.type != kind)


@pytest.mark.parametrize(
    ("linux", "reason"),
    [
        ({"namespaces": without("pid")}, "host's pid namespace"),
        ({"namespaces": without("network")}, "host's network namespace"),
        ({"namespaces": without("ipc")}, "host's ipc namespace"),
        ({"namespaces": without("uts")}, "host's uts namespace"),
        ({"namespaces": (*without("pid"), Namespace("pid", "/proc/1/ns/pid"))}, "another's pid namespace"),
        ({"namespaces": (*defaults.NAMESPACES, Namespace("user"))}, "user namespace"),
        ({"uid_mappings": (IDMapping(0, 1000, 1),)}, "user namespace"),
        ({"devices": (Device("/dev/kvm", "c", 10, 232),)}, "/dev/kvm is a device of the host's"),
        ({"intel_rdt": IntelRdt()}, "intelRdt"),
        ({"seccomp": Seccomp("SCMP_ACT_ALLOW", listener_path="/x")}, "answered by a process of the host's"),
        ({"resources": Resources(hugepage_limits=(HugepageLimit("2MB", 1),))}, "huge pages"),
        ({"resources": Resources(unified={"memory.high": "1"})}, "memory.high"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(linux: dict[str, Any], reason: str) -> None:
    given = config()
    with pytest.raises(Unsupported, match=reason) as caught:
        shape.check(replace(given, linux=replace(given.linux, **linux)))
    assert caught.value.hint


def test_hooks_and_descriptors_are_refused() -> None:
    with pytest.raises(Unsupported, match="hooks"):
        shape.check(replace(config(), hooks=Hooks(create_container=(Hook("/bin/true"),))))
    with pytest.raises(Unsupported, match="preserve-fds"):
        shape.check(config(), preserve=(3,))


def test_what_every_engine_asks_for_is_accepted() -> None:
    shape.check(config())
    given = (*without("network"), Namespace("network", "/run/netns/x"))
    shape.check(replace(config(), linux=replace(config().linux, namespaces=given)))
    # A privileged one lists every device of the host and means all that there are.
    rules = (DeviceRule(False, access="rwm"), DeviceRule(True, access="rwm"))
    devices = (Device("/dev/kvm", "c", 10, 232),)
    shape.check(config(devices=devices, resources=Resources(devices=rules)))
