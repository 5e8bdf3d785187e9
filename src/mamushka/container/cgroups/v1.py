"""Resources as the files of cgroup v1. Documentation/admin-guide/cgroup-v1."""

from __future__ import annotations

from mamushka.container.cgroups.settings import (
    Setting,
    checked_name,
    checked_swap,
    checked_weight,
    huge_pages,
    limit,
    throttles,
)
from mamushka.errors import Invalid, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import CPU, BlockIO, Memory, Network, Resources

# Hierarchies that every container joins, for its limits, its statistics and its device rules.
ACCOUNTED = ("memory", "cpu", "cpuacct", "pids", "devices", "blkio")


def settings(resources: Resources) -> list[Setting]:
    """Every write but the device rules', in an order that a new cgroup accepts."""
    result: list[Setting] = []
    if resources.memory:
        result += _memory(resources.memory)
    if resources.cpu:
        result += _cpu(resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        result.append(Setting("pids", "pids.max", str(resources.pids.limit) if resources.pids.limit > 0 else "max"))
    if resources.block_io:
        result += _block_io(resources.block_io)
    result += huge_pages(resources.hugepage_limits, "limit_in_bytes")
    if resources.network:
        result += _network(resources.network)
    for device, rdma in resources.rdma.items():
        result.append(Setting("rdma", "rdma.max", rdma_limits(device, rdma.hca_handles, rdma.hca_objects)))
    return result


def rdma_limits(device: str, handles: int | None, objects: int | None) -> str:
    """One line of rdma.max, the same in both versions."""
    if handles is None and objects is None:
        raise Invalid(f"the RDMA limits of {device} say nothing", hint="give hcaHandles, hcaObjects or both")
    words = [f"hca_handle={handles}"] if handles is not None else []
    words += [f"hca_object={objects}"] if objects is not None else []
    return " ".join([checked_name(device, "an RDMA device"), *words])


def _memory(memory: Memory) -> list[Setting]:
    checked_swap(memory)
    result = []
    if memory.limit:
        result.append(Setting("memory", "memory.limit_in_bytes", limit(memory.limit, "-1")))
    if memory.swap:
        result.append(Setting("memory", "memory.memsw.limit_in_bytes", limit(memory.swap, "-1")))
    elif memory.limit and memory.limit < 0:
        # An unlimited memory under a limited sum is refused by the kernel; without swap accounting there is no sum.
        result.append(Setting("memory", "memory.memsw.limit_in_bytes", "-1", ("memory.limit_in_bytes", "-1")))
    if memory.reservation:
        result.append(Setting("memory", "memory.soft_limit_in_bytes", limit(memory.reservation, "-1")))
    if memory.swappiness is not None:
        result.append(Setting("memory", "memory.swappiness", str(memory.swappiness)))
    if memory.disable_oom_killer:
        result.append(Setting("memory", "memory.oom_control", "1"))
    if memory.use_hierarchy is False:
        raise Unsupported("cannot count memory without that of the cgroups below: no kernel since Linux 5.11 does",
                          hint="leave memory.useHierarchy out")  # fmt: skip
    if memory.kernel and memory.kernel > 0:
        raise Unsupported("cannot limit kernel memory by itself: no kernel since Linux 5.16 does",
                          hint="leave memory.kernel out: memory.limit counts it")  # fmt: skip
    if memory.kernel_tcp:
        result.append(Setting("memory", "memory.kmem.tcp.limit_in_bytes", limit(memory.kernel_tcp, "-1")))
    return result


def _cpu(cpu: CPU) -> list[Setting]:
    files = (
        ("cpu", "cpu.shares", cpu.shares or None),
        ("cpu", "cpu.cfs_period_us", cpu.period or None),
        ("cpu", "cpu.cfs_quota_us", cpu.quota or None),
        ("cpu", "cpu.cfs_burst_us", cpu.burst),
        ("cpu", "cpu.rt_period_us", cpu.realtime_period or None),
        ("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime or None),
        ("cpu", "cpu.idle", cpu.idle),
        ("cpuset", "cpuset.cpus", cpu.cpus or None),
        ("cpuset", "cpuset.mems", cpu.mems or None),
    )
    return [Setting(controller, file, str(item)) for controller, file, item in files if item is not None]


def _block_io(block: BlockIO) -> list[Setting]:
    result = []
    if block.weight:
        text = str(checked_weight(block.weight))
        result.append(Setting("blkio", "blkio.bfq.weight", text, ("blkio.weight", text)))
    if block.leaf_weight:
        result.append(Setting("blkio", "blkio.leaf_weight", str(checked_weight(block.leaf_weight))))
    for device in block.weight_device:
        number = f"{device.major}:{device.minor}"
        if device.weight:
            text = f"{number} {checked_weight(device.weight)}"
            result.append(Setting("blkio", "blkio.bfq.weight_device", text, ("blkio.weight_device", text)))
        if device.leaf_weight:
            text = f"{number} {checked_weight(device.leaf_weight)}"
            result.append(Setting("blkio", "blkio.leaf_weight_device", text))
    for file, devices in (
        ("blkio.throttle.read_bps_device", block.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", block.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", block.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", block.throttle_write_iops_device),
    ):
        result += throttles("blkio", file, "", devices)
    return result


def _network(network: Network) -> list[Setting]:
    result = []
    if network.class_id is not None:
        result.append(Setting("net_cls", "net_cls.classid", str(network.class_id)))
    for interface in network.priorities:
        name = checked_name(interface.name, "a network interface")
        result.append(Setting("net_prio", "net_prio.ifpriomap", f"{name} {interface.priority}"))
    return result
