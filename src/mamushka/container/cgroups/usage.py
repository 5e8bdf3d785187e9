"""Everything that a cgroup's files tell about what it has used, for callers who show or bill it.

``stats`` is the short answer of one wall like any other; this is the long one, in the kernel's own terms: per CPU,
per block device, per page size, with the counters of ``memory.stat`` as they are.
"""

from __future__ import annotations

import os

from mamushka.container.cgroups.files import number, read, table
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    # (major, minor, Read or Write or Sync …, how much)
    Block = tuple[int, int, str, int]
    # by some and full: avg10, avg60, avg300 in percent, total in microseconds
    Pressure = Mapping[str, Mapping[str, float]]

NO_LIMIT = (1 << 64) - 1  # v2's "max"
_NANOSECONDS = 1_000_000_000
# A v1 cpuset's switches, and how a new one has them: one that was not made behaves so.
_SWITCHES = {
    "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
    "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 1, "sched_relax_domain_level": -1,
}  # fmt: skip


@value
class Amount:
    """Bytes in use, the most there ever were, how many there may be, and how often that was refused."""

    usage: int = 0
    peak: int = 0
    limit: int = 0
    failures: int = 0


@value
class CpuUse:
    """Times in nanoseconds; per CPU only on v1."""

    total: int = 0
    user: int = 0
    kernel: int = 0
    each: tuple[int, ...] = ()
    each_user: tuple[int, ...] = ()
    each_kernel: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0


@value
class Usage:
    """What one cgroup has used. ``switches`` are a v1 cpuset's; ``io`` and ``operations`` are by device."""

    cpu: CpuUse
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    switches: Mapping[str, int] = EMPTY
    memory: Amount = Amount()
    swap: Amount = Amount()  # memory and swap together
    kernel: Amount = Amount()
    kernel_tcp: Amount = Amount()
    cache: int = 0
    raw: Mapping[str, int] = EMPTY  # memory.stat
    pids: int = 0
    pids_limit: int = 0
    io: tuple[Block, ...] = ()
    operations: tuple[Block, ...] = ()
    huge: Mapping[str, Amount] = EMPTY
    pressure: Mapping[str, Pressure] = EMPTY  # of cpu, memory and io


def v1(directory: Mapping[str, str], tree: str) -> Usage:
    """Of the directories by controller, and of the cgroup2 tree beside them if there is one."""
    own = directory.get("cpuset", "")
    cpuset = _nearest(own)
    memory, pids, block = (directory.get(name, "") for name in ("memory", "pids", "blkio"))
    raw = table(memory + "/memory.stat")
    return Usage(
        cpu=_cpu_v1(directory),
        cpus=members(read(cpuset + "/cpuset.cpus")),
        nodes=members(read(cpuset + "/cpuset.mems")),
        switches={name: _signed(f"{own}/cpuset.{name}", usual) for name, usual in _SWITCHES.items()},
        memory=_amount_v1(memory, "memory"),
        swap=_amount_v1(memory, "memory.memsw"),
        kernel=_amount_v1(memory, "memory.kmem"),
        kernel_tcp=_amount_v1(memory, "memory.kmem.tcp"),
        cache=raw.get("cache", 0),
        raw=raw,
        pids=number(pids + "/pids.current"),
        pids_limit=number(pids + "/pids.max"),
        io=_block_v1(block, "io_service_bytes"),
        operations=_block_v1(block, "io_serviced"),
        huge=_huge_v1(directory.get("hugetlb", "")) or _huge_v2(tree),
        pressure=_pressures(tree),
    )


def v2(directory: str) -> Usage:
    """Of a cgroup v2 directory; zero where a controller is not enabled."""
    cpu = table(directory + "/cpu.stat")
    raw = table(directory + "/memory.stat")
    memory = Amount(
        number(directory + "/memory.current"),
        number(directory + "/memory.peak"),
        _limit(directory + "/memory.max"),
        table(directory + "/memory.events").get("max", 0),
    )
    swap, swap_limit = number(directory + "/memory.swap.current"), _limit(directory + "/memory.swap.max")
    both = memory.limit + swap_limit if NO_LIMIT not in (memory.limit, swap_limit) else NO_LIMIT
    io, operations = _block_v2(read(directory + "/io.stat"))
    return Usage(
        cpu=CpuUse(
            total=1000 * cpu.get("usage_usec", 0),
            user=1000 * cpu.get("user_usec", 0),
            kernel=1000 * cpu.get("system_usec", 0),
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled=1000 * cpu.get("throttled_usec", 0),
        ),
        cpus=members(read(directory + "/cpuset.cpus.effective")),
        nodes=members(read(directory + "/cpuset.mems.effective")),
        memory=memory,
        swap=Amount(memory.usage + swap, 0, both, table(directory + "/memory.swap.events").get("max", 0)),
        cache=raw.get("file", 0),
        raw=raw,
        pids=number(directory + "/pids.current"),
        pids_limit=number(directory + "/pids.max"),
        io=io,
        operations=operations,
        huge=_huge_v2(directory),
        pressure=_pressures(directory),
    )


def members(text: str) -> tuple[int, ...]:
    """A list of the kernel's as numbers: "0-2,4"."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _cpu_v1(directory: Mapping[str, str]) -> CpuUse:
    accounts = directory.get("cpuacct", "")
    tick = _NANOSECONDS // os.sysconf("SC_CLK_TCK")
    times = table(accounts + "/cpuacct.stat")
    # A head, then a line "CPU USER SYSTEM" for each.
    rows = [line.split() for line in read(accounts + "/cpuacct.usage_all").splitlines()[1:]]
    quota = table(directory.get("cpu", "") + "/cpu.stat")
    return CpuUse(
        total=number(accounts + "/cpuacct.usage"),
        user=times.get("user", 0) * tick,
        kernel=times.get("system", 0) * tick,
        each=tuple(map(int, read(accounts + "/cpuacct.usage_percpu").split())),
        each_user=tuple(int(row[1]) for row in rows),
        each_kernel=tuple(int(row[2]) for row in rows),
        periods=quota.get("nr_periods", 0),
        throttled_periods=quota.get("nr_throttled", 0),
        throttled=quota.get("throttled_time", 0),
    )


def _nearest(directory: str) -> str:
    """The directory, or the one above it that its processes are in, where it was not made."""
    while directory and not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _signed(path: str, otherwise: int) -> int:
    text = read(path).strip()
    return int(text) if text else otherwise


def _limit(path: str) -> int:
    text = read(path).strip()
    return NO_LIMIT if text == "max" else int(text or 0)


def _amount_v1(directory: str, name: str) -> Amount:
    names = ("usage_in_bytes", "max_usage_in_bytes", "limit_in_bytes", "failcnt")
    return Amount(*(number(f"{directory}/{name}.{file}") for file in names))


def _block_v1(directory: str, name: str) -> tuple[Block, ...]:
    """Lines "8:0 Read 512", by whichever scheduler counts; the last line is the sum of all."""
    found: list[Block] = []
    for file in (f"blkio.bfq.{name}_recursive", f"blkio.throttle.{name}_recursive"):
        for line in read(f"{directory}/{file}").splitlines():
            words = line.split()
            if len(words) == 3:
                major, _, minor = words[0].partition(":")
                found.append((int(major), int(minor), words[1], int(words[2])))
        if found:
            break
    return tuple(found)


_BLOCK_V2 = {
    "rbytes": (0, "Read"), "wbytes": (0, "Write"), "dbytes": (0, "Discard"),
    "rios": (1, "Read"), "wios": (1, "Write"), "dios": (1, "Discard"),
}  # fmt: skip


def _block_v2(text: str) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """(bytes, operations) of lines ``8:0 rbytes=1 wbytes=2 rios=3 …``."""
    found: tuple[list[Block], list[Block]] = ([], [])
    for line in text.splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        for word in words:
            key, _, count = word.partition("=")
            if key in _BLOCK_V2 and minor:
                which, operation = _BLOCK_V2[key]
                found[which].append((int(major), int(minor), operation, int(count)))
    return tuple(found[0]), tuple(found[1])


def _page_sizes(directory: str, suffix: str) -> list[str]:
    try:
        names = os.listdir(directory) if directory else []
    except FileNotFoundError:
        names = []
    found = [name[len("hugetlb.") : -len(suffix)] for name in names if name.endswith(suffix)]
    return sorted(size for size in found if size and ".rsvd" not in size)


def _huge_v1(directory: str) -> dict[str, Amount]:
    sizes = _page_sizes(directory, ".limit_in_bytes")
    return {size: _amount_v1(directory, f"hugetlb.{size}") for size in sizes}


def _huge_v2(directory: str) -> dict[str, Amount]:
    found = {}
    for size in _page_sizes(directory, ".max"):
        start = f"{directory}/hugetlb.{size}"
        refused = table(start + ".events").get("max", 0)
        found[size] = Amount(number(start + ".current"), 0, _limit(start + ".max"), refused)
    return found


def _pressures(directory: str) -> dict[str, Pressure]:
    found: dict[str, Pressure] = {}
    for name in ("cpu", "memory", "io") if directory else ():
        lines = [line.split() for line in read(f"{directory}/{name}.pressure").splitlines()]
        kinds = {line[0]: dict(_average(word) for word in line[1:]) for line in lines}
        if kinds:
            found[name] = kinds
    return found


def _average(word: str) -> tuple[str, float]:
    key, _, text = word.partition("=")
    return key, int(text) if key == "total" else float(text)
