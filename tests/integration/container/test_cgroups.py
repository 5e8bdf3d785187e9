"""Limits that act: the kernel kills, refuses, slows and freezes as the resources say, on each layout this host has."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mamushka.container.cgroups import Cgroup, Layout, layout, open_cgroup, prune, stale
from mamushka.container.cgroups.layout import HYBRID, LEGACY, UNIFIED
from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.linux.process import clone3
from mamushka.spec.runtime import CPU, DeviceRule, HugepageLimit, Memory, Pids, Resources
from mamushka.values import EMPTY

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(layout().kind == "absent", reason="no cgroup hierarchy is mounted"),
]

MB = 1 << 20
LOOP_CONTROL = os.makedev(10, 237)


def layouts() -> list[Layout]:
    """This host's layout, and on a hybrid host both of its halves, as hosts have them that are one or the other."""
    here = layout()
    if here.kind != HYBRID:
        return [here]
    return [here, Layout(LEGACY, "", here.v1), Layout(UNIFIED, here.unified, EMPTY, here.controllers)]


@pytest.fixture(params=layouts(), ids=lambda item: item.kind)
def cgroup(request: pytest.FixtureRequest, unique: str) -> Iterator[Cgroup]:
    yield from opened(f"/mamushka-test/{unique}", request.param)


@pytest.fixture
def limited(unique: str) -> Iterator[Cgroup]:
    """A cgroup where limits can be set: of the host's layout."""
    if layout().kind == UNIFIED and "memory" not in layout().controllers:
        pytest.skip("no memory controller")
    yield from opened(f"/mamushka-test/{unique}", layout())


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    return f"{os.getpid()}-{abs(hash(request.node.name)) % 10**8}"


def opened(path: str, where: Layout) -> Iterator[Cgroup]:
    cgroup = open_cgroup(path, where)
    handed_down = subtree(where)
    try:
        yield cgroup
    finally:
        cgroup.thaw() if cgroup.exists() else None
        cgroup.kill()
        cgroup.remove()
        prune("/mamushka-test", where)
        for name in subtree(where) - handed_down:
            with open(f"{where.unified}/cgroup.subtree_control", "w") as control:
                control.write(f"-{name}")


def subtree(where: Layout) -> set[str]:
    """The controllers that the cgroup2 tree's root hands down."""
    if not where.unified:
        return set()
    with open(f"{where.unified}/cgroup.subtree_control") as control:
        return set(control.read().split())


class Child:
    """A process born in a cgroup that runs a function; what it returns is its exit code, an OSError its errno."""

    def __init__(self, cgroup: Cgroup, run: Callable[[], int | None]) -> None:
        entrance, directory = cgroup.entrance(), cgroup.descriptor()
        self.pid, self.pidfd = clone3(0, cgroup=directory)
        if self.pid == 0:
            try:
                for door in entrance.doors:
                    os.write(door, b"0")
                os._exit(run() or 0)
            except OSError as error:
                os._exit(error.errno or 255)
            finally:
                os._exit(254)
        entrance.close()
        if directory >= 0:
            os.close(directory)

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


def sleep_long() -> None:
    time.sleep(60)


def joined(pid: int, path: str) -> int:
    """In how many hierarchies a process is at a path."""
    with open(f"/proc/{pid}/cgroup") as lines:
        return sum(line.rstrip().endswith(path) for line in lines)


def test_a_process_is_born_inside_and_counted(cgroup: Cgroup) -> None:
    cgroup.create(Resources())
    child = Child(cgroup, sleep_long)
    deadline = time.monotonic() + 5
    while joined(child.pid, cgroup.path) < len(cgroup.paths()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert joined(child.pid, cgroup.path) == len(cgroup.paths())
    assert cgroup.processes() == (child.pid,)
    cgroup.kill()
    assert child.wait() == -signal.SIGKILL
    cgroup.remove()
    assert not cgroup.exists()
    cgroup.remove()


def test_memory_beyond_the_limit_kills_and_is_counted(limited: Cgroup) -> None:
    limited.create(Resources(memory=Memory(limit=16 * MB, swap=16 * MB)))
    assert limited.stats().memory_limit == 16 * MB
    child = Child(limited, lambda: len(bytearray(b"x") * (64 * MB)) and 0)
    assert child.wait() == -signal.SIGKILL
    assert limited.oom_kills() == 1
    assert limited.stats().memory_peak >= 12 * MB


def test_no_more_processes_than_the_limit(limited: Cgroup) -> None:
    limited.create(Resources(pids=Pids(limit=3)))

    def fork_often() -> int:
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
        return 0

    assert Child(limited, fork_often).wait() == errno.EAGAIN
    assert limited.stats().pids_limit == 3


def test_cpu_time_is_rationed(limited: Cgroup) -> None:
    limited.create(Resources(cpu=CPU(quota=10_000, period=100_000)))

    def spin() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass

    before = time.monotonic()
    child = Child(limited, spin)
    child.wait()
    elapsed = time.monotonic() - before
    stats = limited.stats()
    # One slice more than the ration may be in flight.
    assert 0 < stats.cpu < 0.1 * elapsed + 0.05
    assert stats.cpu_throttled > 0


def open_loop_control(path: str) -> Callable[[], None]:
    def run() -> None:
        for harmless in ("/dev/null", "/dev/urandom"):
            os.close(os.open(harmless, os.O_RDONLY))
        os.close(os.open(path, os.O_RDONLY))

    return run


def test_a_device_is_denied_until_a_rule_allows_it(cgroup: Cgroup, tmp_path) -> None:
    node = str(tmp_path / "device")
    os.mknod(node, 0o600 | stat.S_IFCHR, LOOP_CONTROL)
    try:
        os.close(os.open(node, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"/dev/loop-control cannot be opened even here: {error}")
    cgroup.create(Resources())
    assert Child(cgroup, open_loop_control(node)).wait() == errno.EPERM
    cgroup.set(Resources(devices=(DeviceRule(True, "c", 10, 237, "r"),)))
    assert Child(cgroup, open_loop_control(node)).wait() == 0
    assert Child(cgroup, lambda: os.close(os.open(node, os.O_RDWR))).wait() == errno.EPERM
    cgroup.set(Resources(devices=(DeviceRule(True, access="rwm"),)))
    assert Child(cgroup, lambda: os.close(os.open(node, os.O_RDWR))).wait() == 0
    cgroup.set(Resources(devices=(DeviceRule(False, access="rwm"),)))
    assert Child(cgroup, open_loop_control(node)).wait() == errno.EPERM


def test_frozen_processes_stand_still_until_thawed(cgroup: Cgroup) -> None:
    cgroup.create(Resources())
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def tick() -> None:
        while True:
            os.write(writer, b".")
            time.sleep(0.005)

    def ticks(seconds: float) -> int:
        try:
            os.read(reader, 1 << 16)
        except BlockingIOError:
            pass
        time.sleep(seconds)
        try:
            return len(os.read(reader, 1 << 16))
        except BlockingIOError:
            return 0

    child = Child(cgroup, tick)
    assert ticks(0.2) > 0
    cgroup.freeze()
    assert cgroup.frozen()
    assert ticks(0.1) == 0
    cgroup.thaw()
    assert not cgroup.frozen()
    assert ticks(0.2) > 0
    cgroup.freeze()
    cgroup.kill()
    assert child.wait() == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_killing_gets_every_descendant(cgroup: Cgroup) -> None:
    cgroup.create(Resources())

    def family() -> None:
        for _ in range(3):
            os.fork()
        sleep_long()

    child = Child(cgroup, family)
    deadline = time.monotonic() + 5
    while len(cgroup.processes()) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(cgroup.processes()) == 8
    with pytest.raises(Conflict, match="in use"):
        cgroup.remove()
    cgroup.kill()
    assert child.wait() == -signal.SIGKILL
    cgroup.remove()


def test_cgroups_made_inside_go_with_it(cgroup: Cgroup) -> None:
    cgroup.create(Resources())
    for _, directory in cgroup.paths():
        os.makedirs(f"{directory}/inner/most")
    cgroup.remove()
    assert not cgroup.exists()


def test_what_fails_leaves_nothing(limited: Cgroup) -> None:
    cpu = CPU(cpus="4000-4001")
    if layout().kind == UNIFIED and "cpuset" not in layout().controllers:
        pytest.skip("no cpuset controller")
    with pytest.raises((Invalid, Conflict), match=r"cpuset\.cpus to '4000-4001'"):
        limited.create(Resources(cpu=cpu))
    assert not limited.exists()


def test_a_controller_that_is_nowhere_is_named(limited: Cgroup) -> None:
    with pytest.raises(Unsupported, match="nothing"):
        limited.create(Resources(unified={"nothing.max": "1"}))
    bare = open_cgroup(limited.path, Layout("absent"))
    with pytest.raises(Unsupported, match="memory"):
        bare.create(Resources(memory=Memory(limit=MB)))
    with pytest.raises(Unsupported, match="devices"):
        bare.create(Resources())


def test_a_controller_of_the_v2_tree_is_handed_down(cgroup: Cgroup) -> None:
    """On a hybrid host what v1 lacks comes from the tree beside it; huge pages are the one such limit here."""
    here = layout()
    if "hugetlb" not in here.controllers or not os.path.isdir("/sys/kernel/mm/hugepages/hugepages-2048kB"):
        pytest.skip("no hugetlb controller in a cgroup2 tree, or no huge pages of 2 MB")
    pages = (HugepageLimit("2MB", 4 * MB),)
    if "" not in (trees := dict(cgroup.paths())) and "unified" not in trees:
        with pytest.raises(Unsupported, match="hugetlb"):
            cgroup.create(Resources(hugepage_limits=pages))
        return
    cgroup.create(Resources(hugepage_limits=pages, unified={"cgroup.max.depth": "3"}))
    directory = trees.get("unified") or trees[""]
    with open(f"{directory}/hugetlb.2MB.max") as limit, open(f"{directory}/cgroup.max.depth") as depth:
        assert (limit.read().strip(), depth.read().strip()) == (str(4 * MB), "3")
    cgroup.set(Resources(hugepage_limits=(HugepageLimit("2MB", 2 * MB),)))
    with open(f"{directory}/hugetlb.2MB.max") as limit:
        assert limit.read().strip() == str(2 * MB)


def test_limits_change_while_it_runs(limited: Cgroup) -> None:
    limited.create(Resources(memory=Memory(limit=64 * MB, swap=64 * MB), cpu=CPU(quota=50_000, period=100_000)))

    def hold() -> None:
        held = bytearray(b"x") * (8 * MB)
        sleep_long()
        del held

    child = Child(limited, hold)
    # Up and down, past one another: whichever order the kernel wants.
    for size in (256 * MB, 32 * MB, 128 * MB):
        limited.set(Resources(memory=Memory(limit=size, swap=size)))
        assert limited.stats().memory_limit == size
    deadline = time.monotonic() + 5
    while limited.stats().memory < 8 * MB and time.monotonic() < deadline:
        time.sleep(0.01)
    limited.set(Resources(memory=Memory(limit=-1, swap=-1)))
    assert limited.stats().memory_limit == 0
    limited.set(Resources(cpu=CPU(quota=1_000_000, period=1_000_000)))
    with pytest.raises(Conflict, match="in use"):
        limited.set(Resources(memory=Memory(limit=MB, swap=MB, check_before_update=True)))
    limited.kill()
    assert child.wait() == -signal.SIGKILL


def test_a_limit_of_a_hierarchy_not_yet_joined(limited: Cgroup) -> None:
    here = layout()
    if "cpuset" not in (*here.v1, *here.controllers):
        pytest.skip("no cpuset controller")
    limited.create(Resources())
    child = Child(limited, sleep_long)
    limited.set(Resources(cpu=CPU(cpus="0")))
    deadline = time.monotonic() + 5
    while os.sched_getaffinity(child.pid) != {0} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.sched_getaffinity(child.pid) == {0}
    limited.kill()
    child.wait()


def test_a_cgroup_with_processes_is_not_taken_over(cgroup: Cgroup) -> None:
    cgroup.create(Resources())
    child = Child(cgroup, sleep_long)
    time.sleep(0.05)
    name = Path(f"/proc/{child.pid}/comm").read_text().strip()
    with pytest.raises(Conflict, match=rf"in use by {child.pid} \({re.escape(name)}\)$"):
        cgroup.create(Resources())
    assert cgroup.processes() == (child.pid,)
    cgroup.kill()
    child.wait()


def test_what_a_killed_start_left_is_found_and_removed(cgroup: Cgroup) -> None:
    cgroup.create(Resources())
    directory = cgroup.paths()[-1][1]
    for _, other in cgroup.paths()[:-1]:
        os.rmdir(other)
    prefix, name = os.path.split(cgroup.path)
    assert os.path.isdir(directory)
    assert cgroup.path in stale(prefix, ())
    assert cgroup.path not in stale(prefix, {name})
    cgroup.remove()
    assert cgroup.path not in stale(prefix, ())
