"""When a process runs, where its memory lies, which kernel it sees: asked inside, and of the kernel from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from mamushka.errors import Denied, Invalid, MamushkaError, Unsupported
from mamushka.spec.runtime import CPU, Hook, Hooks, IOPriority, MemoryPolicy, Personality, Process, Resources, Scheduler
from mamushka.values import replace

from .conftest import Ground

pytestmark = [pytest.mark.root, pytest.mark.lab]

WAIT = "echo ready; sleep 60"


def scheduled(pid: int) -> tuple[int, int, int]:
    """(policy, nice, real-time priority) of a process. proc_pid_stat(5), fields 41, 19 and 40."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(") ")[2].split()
    return int(fields[38]), int(fields[16]), int(fields[37])


def disk_rank(pid: int) -> int:
    """ioprio_get(2), asked by a process of its own."""
    number = {"x86_64": 252, "aarch64": 31, "riscv64": 31}[os.uname().machine]
    code = f"import ctypes; print(ctypes.CDLL(None).syscall({number}, 1, {pid}))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Scheduler("SCHED_OTHER", nice=7), (0, 7, 0)),
        (Scheduler("SCHED_OTHER", nice=-3), (0, -3, 0)),
        (Scheduler("SCHED_BATCH", nice=5), (3, 5, 0)),
        (Scheduler("SCHED_IDLE"), (5, 0, 0)),
        (Scheduler("SCHED_FIFO", priority=11), (1, 0, 11)),
        (Scheduler("SCHED_RR", priority=99, flags=("SCHED_FLAG_RESET_ON_FORK",)), (2, 0, 99)),
    ],
    ids=lambda item: item.policy if isinstance(item, Scheduler) else "",
)
def test_the_scheduler_is_the_one_asked_for(ground: Ground, asked: Scheduler, expected: tuple[int, int, int]) -> None:
    linux: dict[str, Any] = {"cgroups_path": f"/{ground.name}"}  # right below the root, which has real time to give
    if asked.priority and os.path.exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"):
        linux["resources"] = Resources(cpu=CPU(realtime_runtime=50_000, realtime_period=1_000_000))
    started = ground.start(ground.config("sleep", "60", scheduler=asked, linux=linux))
    assert scheduled(started.pid) == expected
    reset = bool(asked.flags)
    assert (os.sched_getscheduler(started.pid) & 0x40000000 != 0) == reset


def test_a_deadline(ground: Ground) -> None:
    """The kernel's own account of the three times: sched(7) shows them in /proc/PID/sched as dl.runtime and so on."""
    asked = Scheduler("SCHED_DEADLINE", runtime=2_000_000, deadline=10_000_000, period=20_000_000)
    started = ground.start(ground.config("sleep", "60", scheduler=asked))
    assert scheduled(started.pid)[0] == 6
    with open(f"/proc/{started.pid}/sched") as file:
        found = dict(re.findall(r"^dl\.(\w+)\s*:\s*(-?\d+)", file.read(), re.M))
    if found:
        assert int(found["deadline"]) > 0 and int(found["runtime"]) <= 2_000_000


def test_disk_requests_and_exec_have_their_own(ground: Ground) -> None:
    started = ground.start(ground.config("sleep", "60", io_priority=IOPriority("IOPRIO_CLASS_BE", 6)))
    assert disk_rank(started.pid) == 2 << 13 | 6
    code, text = ground.exec(
        "cat /proc/self/stat", scheduler=Scheduler("SCHED_BATCH", nice=9), io_priority=IOPriority("IOPRIO_CLASS_IDLE")
    )
    fields = text.rpartition(") ")[2].split()
    assert code == 0 and (fields[38], fields[16]) == ("3", "9")


@pytest.mark.parametrize("kind", ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"])
def test_every_class_of_disk_requests(ground: Ground, kind: str) -> None:
    started = ground.start(ground.config("sleep", "60", io_priority=IOPriority(kind, 3)))
    assert disk_rank(started.pid) >> 13 == {"RT": 1, "BE": 2, "IDLE": 3}[kind.rpartition("_")[2]]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (MemoryPolicy("MPOL_BIND", "0"), "bind:0"),
        (MemoryPolicy("MPOL_BIND", "0", ("MPOL_F_STATIC_NODES",)), "bind=static:0"),
        (MemoryPolicy("MPOL_INTERLEAVE", "0", ("MPOL_F_RELATIVE_NODES",)), "interleave=relative:0"),
        (MemoryPolicy("MPOL_PREFERRED", "0"), "prefer:0"),
        (MemoryPolicy("MPOL_PREFERRED_MANY", "0"), "prefer (many):0"),
        (MemoryPolicy("MPOL_WEIGHTED_INTERLEAVE", "0"), "weighted interleave:0"),
        (MemoryPolicy("MPOL_LOCAL"), "local"),
        (MemoryPolicy("MPOL_DEFAULT"), "default"),
    ],
    ids=lambda item: " ".join((item.mode, *item.flags)) if isinstance(item, MemoryPolicy) else "",
)
def test_memory_comes_from_where_it_is_asked(ground: Ground, asked: MemoryPolicy, seen: str) -> None:
    if not os.path.exists("/proc/self/numa_maps"):
        with pytest.raises(Unsupported, match="set_mempolicy"):
            ground.run(ground.config("true", linux={"memory_policy": asked}))
        pytest.skip("a kernel without NUMA: it was refused, and that is all to be seen here")
    try:
        ground.start(ground.config("sleep", "60", linux={"memory_policy": asked}))
    except Invalid:
        if asked.mode == "MPOL_WEIGHTED_INTERLEAVE":
            pytest.skip("a kernel before Linux 6.9")
        raise
    code, text = ground.exec("cat /proc/self/numa_maps")
    assert code == 0 and all(line.split(" ", 1)[1].startswith(seen) for line in text.splitlines() if "heap" in line)
    assert f" {seen} " in text


def test_the_personality_is_seen_by_uname(ground: Ground) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("what another machine calls its 32 bits is not known here")
    ground.start(ground.config("sleep", "60", linux={"personality": Personality("LINUX32")}))
    assert ground.exec("/bin/busybox", "uname", "-m") == (0, "i686\n")


def test_hooks_are_not_scheduled_like_the_program(ground: Ground) -> None:
    with open(f"{ground.rootfs}/bin/hook", "w") as file:
        file.write("#!/bin/sh\ncat /proc/self/stat > /tmp/hook\n")
    os.chmod(f"{ground.rootfs}/bin/hook", 0o755)
    config = ground.config("cat /proc/self/stat", scheduler=Scheduler("SCHED_BATCH", nice=9))
    text = ground.output(replace(config, hooks=Hooks(start_container=(Hook("/bin/hook", env=("PATH=/bin",)),))))
    with open(f"{ground.rootfs}/tmp/hook") as file:
        found = [line.rpartition(") ")[2].split() for line in (text, file.read())]
    assert [(fields[38], fields[16]) for fields in found] == [("3", "9"), ("0", str(os.nice(0)))]


def test_real_time_without_any_is_refused_with_a_reason(ground: Ground) -> None:
    if not os.path.exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"):
        pytest.skip("no cgroup of version 1 that rations real time (CONFIG_RT_GROUP_SCHED)")
    with pytest.raises(Denied, match="SCHED_FIFO: sched_setattr: Operation not permitted: perhaps"):
        ground.run(ground.config("true", scheduler=Scheduler("SCHED_FIFO", priority=1)))
    assert os.listdir(ground.state) == []


def test_the_ordinary_personality(ground: Ground) -> None:
    config = ground.config("/bin/busybox", "uname", "-m", linux={"personality": Personality("LINUX")})
    assert ground.output(config).strip() == os.uname().machine


@pytest.mark.parametrize(
    ("process", "linux", "kind", "message"),
    [
        ({"scheduler": Scheduler("SCHED_MOOD")}, {}, Invalid, "SCHED_MOOD"),
        ({"scheduler": Scheduler("SCHED_ISO")}, {}, Unsupported, "SCHED_ISO"),
        ({"scheduler": Scheduler("SCHED_FIFO")}, {}, Invalid, "1 to 99"),
        ({"scheduler": Scheduler("SCHED_OTHER", priority=1)}, {}, Invalid, "priority 1"),
        ({"scheduler": Scheduler("SCHED_OTHER", nice=20)}, {}, Invalid, "-20 to 19"),
        ({"scheduler": Scheduler("SCHED_OTHER", runtime=1)}, {}, Invalid, "no runtime"),
        ({"scheduler": Scheduler("SCHED_DEADLINE", runtime=2, deadline=1)}, {}, Invalid, "runtime of 2 ns"),
        ({"scheduler": Scheduler("SCHED_OTHER", flags=("SCHED_FLAG_X",))}, {}, Invalid, "SCHED_FLAG_X"),
        ({"io_priority": IOPriority("IOPRIO_CLASS_X")}, {}, Invalid, "IOPRIO_CLASS_X"),
        ({"io_priority": IOPriority("IOPRIO_CLASS_BE", 8)}, {}, Invalid, "0 to 7"),
        ({}, {"memory_policy": MemoryPolicy("MPOL_X")}, Invalid, "MPOL_X"),
        ({}, {"memory_policy": MemoryPolicy("MPOL_BIND")}, Invalid, "names no nodes"),
        ({}, {"memory_policy": MemoryPolicy("MPOL_BIND", "a")}, Invalid, "list of memory nodes"),
        ({}, {"memory_policy": MemoryPolicy("MPOL_LOCAL", "0")}, Invalid, "neither nodes nor flags"),
        ({}, {"memory_policy": MemoryPolicy("MPOL_BIND", "0", ("MPOL_F_X",))}, Invalid, "MPOL_F_X"),
        (
            {},
            {"memory_policy": MemoryPolicy("MPOL_BIND", "0", ("MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"))},
            Invalid,
            "not both",
        ),
        ({}, {"personality": Personality("LINUX64")}, Invalid, "LINUX64"),
        ({}, {"personality": Personality("LINUX", ("ADDR_NO_RANDOMIZE",))}, Unsupported, "ADDR_NO_RANDOMIZE"),
    ],
)
def test_what_no_kernel_takes_is_refused_before_anything_is_made(
    ground: Ground, process: dict[str, Any], linux: dict[str, Any], kind: type[MamushkaError], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        ground.run(ground.config("true", linux=linux, **process))
    assert not os.path.exists(ground.state)


def test_nodes_that_are_not_there_leave_nothing(ground: Ground) -> None:
    with pytest.raises(MamushkaError, match="set_mempolicy"):
        ground.run(ground.config("true", linux={"memory_policy": MemoryPolicy("MPOL_BIND", "1000")}))
    assert os.listdir(ground.state) == []


def test_an_exec_is_refused_alike(ground: Ground) -> None:
    ground.start(ground.config("sleep", "60"))
    with pytest.raises(Invalid, match="SCHED_MOOD"):
        ground.exec("true", scheduler=Scheduler("SCHED_MOOD"))
    assert Process().scheduler is None
