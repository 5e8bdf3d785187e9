"""From a bundle to the shape of a machine, and what of a bundle a machine cannot honour.

A machine has a kernel of its own. What a bundle shares with the host's kernel cannot be had behind this wall, and is
refused with the reason; what only protects the host from the workload (labels of AppArmor and SELinux) is the wall's
own business here. Limits that mean hardware become hardware: processors and memory. They also hold, with what the
monitor itself takes, in the monitor's cgroup, so that a guest that got out gets no more.
"""

from __future__ import annotations

from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import CPU, DeviceRule, Memory, Pids, Resources
from mamushka.values import EMPTY, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mamushka.spec.runtime import Config

MIB = 1 << 20
# Without a limit: what most images' programs need, and little enough for many machines on one host.
MEMORY_DEFAULT = 512 * MIB
CPUS_DEFAULT = 1
# A distribution's kernel with its modules and our first process; below that it ends in its own out-of-memory killer.
MEMORY_MIN = 64 * MIB
# Guest addresses have a map of 1 TiB here (pmem begins at 256 GiB), and KVM itself allows more.
MEMORY_MAX = 128 << 30
# Each is a thread; kernels have tables for more, but a host with more is rare.
CPUS_MAX = 128
# What a monitor, its page tables and virtiofsd may take beside the guest's memory, at most.
OVERHEAD = 192 * MIB
# Threads of a monitor besides its processors, and virtiofsd's.
TASKS_MORE = 256
_ALIGNMENT = 2 * MIB  # a huge page of the host's

# Annotations by which an engine says how a machine is to be made; ours, and those that others use for theirs.
KERNEL, COLD, APPEND = "com.mamushka.machine.kernel", "com.mamushka.machine.cold", "com.mamushka.machine.append"

# /dev/kvm, /dev/net/tun, /dev/vhost-net, /dev/vhost-vsock, /dev/userfaultfd, and what any program opens:
# null, zero, full, random, urandom, tty, ptmx and terminals. Documentation/admin-guide/devices.txt.
_DEVICES = (
    (10, 232),
    (10, 200),
    (10, 238),
    (10, 241),
    (10, 126),
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 2),
)
_PTY_MAJOR = 136

_SHARED = {
    "pid": "processes of the host do not run on the machine's kernel",
    "ipc": "shared memory and semaphores of the host are its kernel's",
    "uts": "the host's name is kept by its kernel",
    "network": "the host's links are its kernel's",
}
_HINTS = {"network": "publish ports (-p), or choose --network bridge or none"}


@value
class Shape:
    """A machine's hardware; memory in bytes."""

    cpus: int = CPUS_DEFAULT
    memory: int = MEMORY_DEFAULT


_PLAIN = Shape()


def shape(config: Config, otherwise: Shape = _PLAIN) -> Shape:
    """The machine that the limits ask for. Invalid where none can be that small or large."""
    resources = config.linux.resources or Resources()
    return Shape(_cpus(resources.cpu or CPU(), otherwise.cpus), _memory(resources.memory or Memory(), otherwise.memory))


def _cpus(cpu: CPU, otherwise: int) -> int:
    """As many as the quota keeps busy; without one, as the list of processors has."""
    if cpu.quota and cpu.quota > 0:
        period = cpu.period or 100_000  # microseconds, the kernel's default
        count = -(-cpu.quota // period)
    elif cpu.cpus:
        count = len({*_listed(cpu.cpus)})
        if not count:
            raise Invalid(f"{cpu.cpus!r} is an empty list of processors", hint="as in 0-3,7")
    else:
        count = otherwise
    if count > CPUS_MAX:
        raise Invalid(f"a machine of {count} processors: at most {CPUS_MAX}")
    return count


def _listed(text: str) -> Iterator[int]:
    """The numbers of a list like 0-3,7. cpuset(7)."""
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise Invalid(f"{text!r} is not a list of processors", hint="as in 0-3,7")
        yield from range(int(first), min(int(last or first), int(first) + CPUS_MAX) + 1)


def _memory(memory: Memory, otherwise: int) -> int:
    limit = memory.limit or 0
    if limit <= 0:
        limit = otherwise
    if limit < MEMORY_MIN:
        raise Invalid(
            f"a memory limit of {limit // MIB} MiB: a machine has its own kernel and needs {MEMORY_MIN // MIB} MiB",
            hint="give it more, or choose --runtime container",
        )
    if limit > MEMORY_MAX:
        raise Invalid(f"a machine of {limit >> 30} GiB: at most {MEMORY_MAX >> 30}")
    return limit - limit % _ALIGNMENT


def outside(config: Config) -> Resources:
    """What holds for the monitor's cgroup: the bundle's limits and room for the monitor, and its own few devices."""
    asked = config.linux.resources or Resources()
    return replace(limits(asked), devices=_rules())


def limits(asked: Resources) -> Resources:
    """Limits as they hold for a monitor's cgroup; those of processes, huge pages and packets hold in the guest."""
    memory = asked.memory
    if memory is not None:
        limit = memory.limit + OVERHEAD if memory.limit and memory.limit > 0 else memory.limit
        swap = memory.swap + OVERHEAD if memory.swap and memory.swap > 0 else memory.swap
        memory = Memory(limit=limit, swap=swap, swappiness=memory.swappiness)
    most = asked.pids.limit if asked.pids else None
    pids = Pids(limit=most + TASKS_MORE) if most and most > 0 else None
    return Resources(memory=memory, cpu=asked.cpu, pids=pids, block_io=asked.block_io)


def _rules() -> tuple[DeviceRule, ...]:
    """Nothing but what a monitor opens before its cage closes."""
    allowed = [DeviceRule(True, "c", major, minor, "rw") for major, minor in _DEVICES]
    return (DeviceRule(False, access="rwm"), *allowed, DeviceRule(True, "c", _PTY_MAJOR, None, "rw"))


def check(config: Config, *, preserve: tuple[int, ...] = ()) -> None:
    """Unsupported where the bundle asks for what no machine can give, with the reason."""
    for reason, hint in _obstacles(config, preserve):
        raise Unsupported(f"a machine cannot honour this bundle: {reason}", hint=hint)


def _obstacles(config: Config, preserve: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    linux = config.linux
    otherwise = "choose --runtime container for this workload"
    if preserve:
        yield "descriptors of the host's (--preserve-fds) mean nothing to another kernel", otherwise
    if config.process is None:
        yield "it has no process", ""
    given = {namespace.type: namespace.path for namespace in linux.namespaces}
    for kind, why in _SHARED.items():
        if kind not in given:
            yield f"it has the host's {kind} namespace, but {why}", _HINTS.get(kind, otherwise)
        elif given[kind] and kind != "network":
            yield f"it joins another's {kind} namespace, but {why}", otherwise
    if linux.uid_mappings or linux.gid_mappings or "user" in given:
        yield "it has a user namespace, but a machine's users are its own already", "leave out --userns"
    if given.get("time") or linux.time_offsets:
        yield "it has clocks of its own, which are not set in a machine yet", otherwise
    yield from _of_kernel(config, otherwise)


def _of_kernel(config: Config, otherwise: str) -> Iterator[tuple[str, str]]:
    linux = config.linux
    if linux.intel_rdt is not None:
        yield "it asks for a class of service (intelRdt) of the host's processor", otherwise
    if linux.net_devices:
        yield "links cannot be moved from the host's kernel into the machine's", otherwise
    if linux.seccomp is not None and linux.seccomp.listener_path:
        yield "its seccomp filter is answered by a process of the host's", otherwise
    if config.hooks.create_container or config.hooks.start_container:
        yield "its createContainer and startContainer hooks expect the host's kernel inside", otherwise
    resources = linux.resources or Resources()
    if resources.rdma or resources.network or resources.hugepage_limits:
        yield "it limits huge pages, RDMA or classes of packets, which the machine has none of", otherwise
    if resources.unified:
        names = ", ".join(sorted(resources.unified))
        yield f"{names}: files of the host's control groups", otherwise
    if linux.devices and not _privileged(config):
        first = linux.devices[0]
        yield f"{first.path} is a device of the host's kernel", "without --device, or --runtime container"


def _privileged(config: Config) -> bool:
    """Whether all devices are meant, not one: then all of the machine's own are given."""
    rules = config.linux.resources.devices if config.linux.resources else ()
    return bool(rules) and rules[-1] == DeviceRule(allow=True, access="rwm")


def asked(annotations: Mapping[str, str] = EMPTY) -> tuple[str, bool, str]:
    """(kernel, whether cold, what to append to the kernel's command line) as an engine has asked for."""
    return annotations.get(KERNEL, ""), annotations.get(COLD, "") == "true", annotations.get(APPEND, "")
