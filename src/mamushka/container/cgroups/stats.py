"""What a cgroup has used, from the files of either version."""

from __future__ import annotations

import os

from mamushka.container.cgroups.files import number, read, table
from mamushka.runtime import Stats

# Above this a v1 memory limit is the kernel's word for none (PAGE_COUNTER_MAX, rounded to pages).
_UNLIMITED = 1 << 62


def v2(directory: str) -> Stats:
    """Of a cgroup v2 directory; zero where a controller is not enabled."""
    cpu = table(directory + "/cpu.stat")
    read_bytes, written = _io_v2(read(directory + "/io.stat"))
    return Stats(
        cpu=cpu.get("usage_usec", 0) / 1e6,
        cpu_user=cpu.get("user_usec", 0) / 1e6,
        cpu_system=cpu.get("system_usec", 0) / 1e6,
        cpu_throttled=cpu.get("throttled_usec", 0) / 1e6,
        memory=number(directory + "/memory.current"),
        memory_limit=number(directory + "/memory.max"),
        memory_peak=number(directory + "/memory.peak"),
        memory_cache=table(directory + "/memory.stat").get("inactive_file", 0),
        pids=number(directory + "/pids.current"),
        pids_limit=number(directory + "/pids.max"),
        io_read=read_bytes,
        io_written=written,
        oom_kills=table(directory + "/memory.events").get("oom_kill", 0),
    )


def _io_v2(text: str) -> tuple[int, int]:
    """The sums over all devices of lines ``8:0 rbytes=1 wbytes=2 …``."""
    totals = {"rbytes": 0, "wbytes": 0}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, count = word.partition("=")
            if key in totals:
                totals[key] += int(count)
    return totals["rbytes"], totals["wbytes"]


def v1(directory: dict[str, str]) -> Stats:
    """Of the directories by controller; zero where one is not joined."""
    cpuacct = table(directory.get("cpuacct", "") + "/cpuacct.stat")
    tick = os.sysconf("SC_CLK_TCK")
    memory = directory.get("memory", "")
    limit = number(memory + "/memory.limit_in_bytes")
    io = table_v1_io(read(directory.get("blkio", "") + "/blkio.throttle.io_service_bytes_recursive"))
    pids = directory.get("pids", "")
    return Stats(
        cpu=number(directory.get("cpuacct", "") + "/cpuacct.usage") / 1e9,
        cpu_user=cpuacct.get("user", 0) / tick,
        cpu_system=cpuacct.get("system", 0) / tick,
        cpu_throttled=table(directory.get("cpu", "") + "/cpu.stat").get("throttled_time", 0) / 1e9,
        memory=number(memory + "/memory.usage_in_bytes"),
        memory_limit=limit if limit < _UNLIMITED else 0,
        memory_peak=number(memory + "/memory.max_usage_in_bytes"),
        memory_cache=table(memory + "/memory.stat").get("total_inactive_file", 0),
        pids=number(pids + "/pids.current"),
        pids_limit=number(pids + "/pids.max"),
        io_read=io[0],
        io_written=io[1],
        oom_kills=table(memory + "/memory.oom_control").get("oom_kill", 0),
    )


def table_v1_io(text: str) -> tuple[int, int]:
    """The sums over all devices of lines ``8:0 Read 1``."""
    totals = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals:
            totals[words[1]] += int(words[2])
    return totals["Read"], totals["Write"]
