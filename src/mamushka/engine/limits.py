"""Limits, devices and resource limits of settings as the runtime-spec says them."""

from __future__ import annotations

import os
import stat

from mamushka.errors import Invalid
from mamushka.spec import runtime as spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mamushka.engine.settings import Device, Limits, Settings, Throttle, Ulimit

# Docker's smallest: below it not even the runtime's own set-up fits.
MEMORY_MIN = 6 << 20
CPU_PERIOD_US = 100_000
_UNLIMITED = (1 << 64) - 1
_RLIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip


def check(limits: Limits) -> None:
    """Invalid for limits that contradict themselves or that no program fits into."""
    if 0 < limits.memory < MEMORY_MIN:
        raise Invalid(f"minimum memory limit allowed is 6MB, not {limits.memory} bytes")
    if limits.memory_swap > 0 and not limits.memory:
        raise Invalid("a limit of memory and swap needs one of memory", hint="give --memory too")
    if 0 < limits.memory_swap < limits.memory:
        raise Invalid(f"memory and swap together ({limits.memory_swap}) are less than memory ({limits.memory})")
    if limits.cpus < 0 or limits.cpus > (os.cpu_count() or 1):
        raise Invalid(
            f"range of CPUs is from 0.01 to {os.cpu_count()}.00, as there are only {os.cpu_count()} CPUs available"
        )
    if limits.cpus and (limits.cpu_quota_us or limits.cpu_period_us):
        raise Invalid("cpus and a CPU period or quota say the same thing twice", hint="give one of them")


def resources(limits: Limits, rules: Sequence[spec.DeviceRule] = ()) -> spec.Resources:
    """What the control groups are told."""
    return spec.Resources(
        devices=tuple(rules),
        memory=_memory(limits),
        cpu=_cpu(limits),
        pids=spec.Pids(limits.pids) if limits.pids > 0 else None,
        block_io=_block_io(limits),
    )


def _memory(limits: Limits) -> spec.Memory | None:
    memory = spec.Memory(
        limit=limits.memory or None,
        reservation=limits.memory_reservation or None,
        # Docker: as much swap as memory, where only memory is said.
        swap=limits.memory_swap or (limits.memory * 2 or None),
        swappiness=limits.memory_swappiness if limits.memory_swappiness >= 0 else None,
        disable_oom_killer=limits.oom_kill_disable or None,
    )
    return None if memory == spec.Memory() else memory


def _cpu(limits: Limits) -> spec.CPU | None:
    period, quota = limits.cpu_period_us, limits.cpu_quota_us
    if limits.cpus:
        period, quota = CPU_PERIOD_US, int(limits.cpus * CPU_PERIOD_US)
    cpu = spec.CPU(
        shares=limits.cpu_shares or None,
        quota=quota or None,
        period=period or None,
        cpus=limits.cpuset_cpus,
        mems=limits.cpuset_mems,
    )
    return None if cpu == spec.CPU() else cpu


def _block_io(limits: Limits) -> spec.BlockIO | None:
    block_io = spec.BlockIO(
        weight=limits.io_weight or None,
        throttle_read_bps_device=_throttles(limits.read_bps),
        throttle_write_bps_device=_throttles(limits.write_bps),
        throttle_read_iops_device=_throttles(limits.read_iops),
        throttle_write_iops_device=_throttles(limits.write_iops),
    )
    return None if block_io == spec.BlockIO() else block_io


def _throttles(throttles: Sequence[Throttle]) -> tuple[spec.ThrottleDevice, ...]:
    return tuple(_throttle(item) for item in throttles)


def _throttle(item: Throttle) -> spec.ThrottleDevice:
    node = _node(item.path)
    if not stat.S_ISBLK(node.st_mode):
        raise Invalid(f"{item.path} is not a block device")
    return spec.ThrottleDevice(os.major(node.st_rdev), os.minor(node.st_rdev), item.rate)


def _node(path: str) -> os.stat_result:
    try:
        node = os.stat(path)
    except OSError as error:
        raise Invalid(
            f"error gathering device information while adding custom device {path!r}: {error.strerror}"
        ) from error
    return node


def device(item: Device) -> tuple[spec.Device, spec.DeviceRule]:
    """A host's device node inside, and the rule that lets it be used."""
    node = _node(item.source)
    kind = "b" if stat.S_ISBLK(node.st_mode) else "c" if stat.S_ISCHR(node.st_mode) else ""
    if not kind:
        raise Invalid(f"{item.source} is not a device node")
    if not item.access or set(item.access) - set("rwm"):
        raise Invalid(f"invalid device mode {item.access!r}", hint="any of r, w and m")
    major, minor = os.major(node.st_rdev), os.minor(node.st_rdev)
    made = spec.Device(item.destination, kind, major, minor, stat.S_IMODE(node.st_mode), node.st_uid, node.st_gid)
    return made, spec.DeviceRule(allow=True, type=kind, major=major, minor=minor, access=item.access)


def all_devices() -> Iterator[spec.Device]:
    """Every device node below /dev, for a privileged workload; terminals and shared memory are its own."""
    for directory, names, files in os.walk("/dev"):
        names[:] = [name for name in names if name not in ("pts", "shm", "mqueue", "fd", ".lxc", ".udev")]
        for name in files:
            path = f"{directory}/{name}"
            node = os.lstat(path)
            kind = "b" if stat.S_ISBLK(node.st_mode) else "c" if stat.S_ISCHR(node.st_mode) else ""
            if kind and path not in ("/dev/console", "/dev/ptmx"):
                major, minor = os.major(node.st_rdev), os.minor(node.st_rdev)
                yield spec.Device(path, kind, major, minor, stat.S_IMODE(node.st_mode), node.st_uid, node.st_gid)


def device_rule(text: str) -> spec.DeviceRule:
    """``c 42:* rwm`` as --device-cgroup-rule has it."""
    parts = text.split()
    major, colon, minor = parts[1].partition(":") if len(parts) == 3 else ("", "", "")
    good = colon and parts[0] in ("a", "b", "c") and not set(parts[2]) - set("rwm")
    if not good or not all(number == "*" or (number.isdecimal() and len(number) < 10) for number in (major, minor)):
        raise Invalid(f"invalid device cgroup rule {text!r}", hint="as in 'c 42:* rmw'")
    return spec.DeviceRule(
        allow=True,
        type=parts[0],
        major=None if major == "*" else int(major),
        minor=None if minor == "*" else int(minor),
        access=parts[2],
    )


def rlimit(item: Ulimit) -> spec.Rlimit:
    """One resource limit; -1 is unlimited."""
    if item.name not in _RLIMITS:
        raise Invalid(f"invalid ulimit type: {item.name}", hint=f"one of {', '.join(_RLIMITS)}")
    if 0 <= item.hard < item.soft or (item.soft < 0 <= item.hard):
        raise Invalid(f"ulimit soft limit must be less than or equal to hard limit: {item.soft} > {item.hard}")
    hard, soft = (_UNLIMITED if number < 0 else number for number in (item.hard, item.soft))
    return spec.Rlimit(f"RLIMIT_{item.name.upper()}", hard, soft)


def devices(settings: Settings) -> tuple[list[spec.Device], list[spec.DeviceRule]]:
    """Nodes and rules beyond the default ones."""
    if settings.security.privileged:
        return list(all_devices()), [spec.DeviceRule(allow=True, access="rwm")]
    pairs = [device(item) for item in settings.devices]
    rules = [rule for _, rule in pairs] + [device_rule(text) for text in settings.device_rules]
    return [node for node, _ in pairs], rules
