"""Resources as the files of cgroup v2. Documentation/admin-guide/cgroup-v2.rst.

The specification's numbers are v1's; shares, swap and block weights are converted as all runtimes do.
"""

from __future__ import annotations

from math import ceil, log2

from mamushka.container.cgroups.settings import Setting, checked_swap, checked_weight, huge_pages, limit, throttles
from mamushka.container.cgroups.v1 import rdma_limits
from mamushka.errors import Invalid, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.spec.runtime import CPU, BlockIO, Memory, Resources


def settings(resources: Resources) -> list[Setting]:
    """Every write; the device rules are a program, not a file. ``unified`` comes last and wins."""
    result: list[Setting] = []
    if resources.memory:
        result += _memory(resources.memory)
    if resources.cpu:
        result += _cpu(resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        result.append(Setting("pids", "pids.max", str(resources.pids.limit) if resources.pids.limit > 0 else "max"))
    if resources.block_io:
        result += _block_io(resources.block_io)
    result += huge_pages(resources.hugepage_limits, "max")
    for device, rdma in resources.rdma.items():
        result.append(Setting("rdma", "rdma.max", rdma_limits(device, rdma.hca_handles, rdma.hca_objects)))
    if resources.network:
        raise Unsupported("cannot set a network class or priority: cgroup v2 has neither",
                          hint="match on the cgroup in nftables instead (socket cgroupv2)")  # fmt: skip
    return result + unified(resources.unified)


def unified(files: Mapping[str, str]) -> list[Setting]:
    """The specification's ``unified`` map: a controller's file and what it is to hold, as they are."""
    result = []
    for file, text in files.items():
        controller, dot, _ = file.partition(".")
        if not controller or not dot or "/" in file or (controller == "cgroup" and not file.startswith("cgroup.max.")):
            raise Invalid(f"the unified cgroup setting {file!r} is not the file of a controller")
        result.append(Setting(controller, file, text))
    return result


def _memory(memory: Memory) -> list[Setting]:
    checked_swap(memory)
    result = []
    if memory.limit:
        result.append(Setting("memory", "memory.max", limit(memory.limit, "max")))
    if memory.swap:
        alone = memory.swap - (memory.limit or 0) if memory.swap > 0 else -1
        result.append(Setting("memory", "memory.swap.max", limit(alone, "max")))
    if memory.reservation:
        result.append(Setting("memory", "memory.low", limit(memory.reservation, "max")))
    for name, given in (
        ("swappiness", memory.swappiness is not None),
        ("disableOOMKiller", memory.disable_oom_killer),
        ("kernel", memory.kernel and memory.kernel > 0),
        ("kernelTCP", memory.kernel_tcp and memory.kernel_tcp > 0),
        ("useHierarchy as false", memory.use_hierarchy is False),
    ):
        if given:
            raise Unsupported(f"cannot set memory.{name}: cgroup v2 has no such setting", hint="leave it out")
    return result


def weight(shares: int) -> int:
    """CPU shares (2 to 262144, 1024 is ordinary) as a weight (1 to 10000, 100 is ordinary).

    A curve through (2, 1), (1024, 100) and (262144, 10000): the straight line that was used earlier gave an
    ordinary container 39, far less than its ordinary neighbours. kubernetes/enhancements, KEP-2254.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    power = log2(shares)
    return ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def _cpu(cpu: CPU) -> list[Setting]:
    result = []
    if cpu.realtime_runtime or cpu.realtime_period:
        raise Unsupported("cannot give real-time CPU time: cgroup v2 has no such setting",
                          hint="leave realtimeRuntime and realtimePeriod out")  # fmt: skip
    if cpu.idle is not None:
        result.append(Setting("cpu", "cpu.idle", str(cpu.idle)))
    if cpu.shares and not cpu.idle:
        result.append(Setting("cpu", "cpu.weight", str(weight(cpu.shares))))
    if cpu.quota or cpu.period:
        quota = limit(cpu.quota, "max") if cpu.quota else "max"
        result.append(Setting("cpu", "cpu.max", f"{quota} {cpu.period}" if cpu.period else quota))
    if cpu.burst is not None:
        result.append(Setting("cpu", "cpu.max.burst", str(cpu.burst)))
    if cpu.cpus:
        result.append(Setting("cpuset", "cpuset.cpus", cpu.cpus))
    if cpu.mems:
        result.append(Setting("cpuset", "cpuset.mems", cpu.mems))
    return result


def io_weight(blkio: int) -> int:
    """A blkio weight (10 to 1000) on io.weight's scale (1 to 10000)."""
    return 1 + (checked_weight(blkio) - 10) * 9999 // 990


def _block_io(block: BlockIO) -> list[Setting]:
    result = []
    if block.leaf_weight or any(device.leaf_weight for device in block.weight_device):
        raise Unsupported("cannot set a block I/O leaf weight: cgroup v2 has no such setting", hint="leave it out")
    if block.weight:
        otherwise = ("io.weight", str(io_weight(block.weight)))
        result.append(Setting("io", "io.bfq.weight", str(block.weight), otherwise))
    for device in block.weight_device:
        if device.weight:
            number = f"{device.major}:{device.minor}"
            otherwise = ("io.weight", f"{number} {io_weight(device.weight)}")
            result.append(Setting("io", "io.bfq.weight", f"{number} {device.weight}", otherwise))
    for key, devices in (
        ("rbps=", block.throttle_read_bps_device),
        ("wbps=", block.throttle_write_bps_device),
        ("riops=", block.throttle_read_iops_device),
        ("wiops=", block.throttle_write_iops_device),
    ):
        result += throttles("io", "io.max", key, devices)
    return result
