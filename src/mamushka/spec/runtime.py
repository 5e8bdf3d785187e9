"""OCI runtime-spec 1.3: the ``config.json`` of a bundle, as frozen values.

The classes are the specification's Go types (specs-go/config.go) without their ``Linux`` prefix; a field
is the snake_case of its JSON name. ``parse`` checks type and range of everything it meets; unknown keys are
ignored and ``null`` is absence, as the specification and every other runtime have it. ``dump`` leaves out
what equals its default, so ``parse(dump(x)) == x``.
"""

from __future__ import annotations

from mamushka import document
from mamushka.errors import Invalid
from mamushka.spec.codec import Codec
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.spec.codec import int32, int64, uint16, uint32, uint64

VERSION = "1.3.0"


@value
class Box:
    """A terminal's size in characters."""

    height: uint64 = 0
    width: uint64 = 0


@value
class User:
    """Who the process is, as the container counts."""

    uid: uint32 = 0
    gid: uint32 = 0
    umask: uint32 | None = None
    additional_gids: tuple[uint32, ...] = ()
    username: str = ""


@value
class Capabilities:
    """The five sets, by the kernel's names: CAP_CHOWN, …"""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@value
class Rlimit:
    """A resource limit: RLIMIT_NOFILE, …; 2⁶⁴-1 is unlimited."""

    type: str
    hard: uint64
    soft: uint64


@value
class Scheduler:
    """sched_setattr(2); runtime, deadline and period in nanoseconds."""

    policy: str
    nice: int32 = 0
    priority: int32 = 0
    flags: tuple[str, ...] = ()
    runtime: uint64 = 0
    deadline: uint64 = 0
    period: uint64 = 0


@value
class IOPriority:
    """ioprio_set(2): IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE."""

    class_: str
    priority: int32 = 0


@value
class ExecCPUAffinity:
    """CPU lists for exec: until the process is in its cgroup, and from then on."""

    initial: str = ""
    final: str = ""


@value
class Process:
    """A program and all that is set before it is executed."""

    cwd: str = "/"
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: Box | None = None
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int32 | None = None
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: ExecCPUAffinity | None = None


@value
class Root:
    """The root filesystem; a relative path starts at the bundle."""

    path: str
    readonly: bool = False


@value
class IDMapping:
    """``size`` ids from ``container_id`` inside are those from ``host_id`` outside."""

    container_id: uint32
    host_id: uint32
    size: uint32


@value
class Mount:
    """Something mounted at ``destination`` inside; options are those of mount(8) and the specification's."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


@value
class Hook:
    """A program that the runtime executes at one moment of the lifecycle; timeout in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int64 | None = None


@value
class Hooks:
    """Hooks by moment. runtime-spec, config.md#posix-platform-hooks."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@value
class Namespace:
    """pid, network, mount, ipc, uts, user, cgroup or time; without a path a new one."""

    type: str
    path: str = ""


@value
class TimeOffset:
    """How far a clock inside is ahead."""

    secs: int64 = 0
    nanosecs: uint32 = 0


@value
class Device:
    """A device node: c, u, b or p."""

    path: str
    type: str
    major: int64 = 0
    minor: int64 = 0
    file_mode: uint32 | None = None
    uid: uint32 | None = None
    gid: uint32 | None = None


@value
class DeviceRule:
    """One rule of the device cgroup; absent numbers match all, later rules win."""

    allow: bool = False
    type: str = ""
    major: int64 | None = None
    minor: int64 | None = None
    access: str = ""


@value
class Memory:
    """Bytes; -1 is unlimited, swap is memory and swap together."""

    limit: int64 | None = None
    reservation: int64 | None = None
    swap: int64 | None = None
    kernel: int64 | None = None
    kernel_tcp: int64 | None = None
    swappiness: uint64 | None = None
    disable_oom_killer: bool | None = None
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


@value
class CPU:
    """Shares, bandwidth in microseconds, and the lists of CPUs and memory nodes."""

    shares: uint64 | None = None
    quota: int64 | None = None
    burst: uint64 | None = None
    period: uint64 | None = None
    realtime_runtime: int64 | None = None
    realtime_period: uint64 | None = None
    cpus: str = ""
    mems: str = ""
    idle: int64 | None = None


@value
class Pids:
    """The most tasks; zero or less is unlimited."""

    limit: int64 | None = None


@value
class WeightDevice:
    """The weight of one block device."""

    major: int64
    minor: int64
    weight: uint16 | None = None
    leaf_weight: uint16 | None = None


@value
class ThrottleDevice:
    """The most bytes or operations a second of one block device."""

    major: int64
    minor: int64
    rate: uint64


@value
class BlockIO:
    """Block device weights and throttles."""

    weight: uint16 | None = None
    leaf_weight: uint16 | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = ()


@value
class HugepageLimit:
    """Bytes of huge pages of one size: 2MB, 1GB."""

    page_size: str
    limit: uint64


@value
class InterfacePriority:
    """net_prio of one interface."""

    name: str
    priority: uint32


@value
class Network:
    """net_cls and net_prio."""

    class_id: uint32 | None = None
    priorities: tuple[InterfacePriority, ...] = ()


@value
class Rdma:
    """RDMA handles and objects of one device."""

    hca_handles: uint32 | None = None
    hca_objects: uint32 | None = None


@value
class Resources:
    """Limits; what is absent stays as it is."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: CPU | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network | None = None
    rdma: Mapping[str, Rdma] = EMPTY
    unified: Mapping[str, str] = EMPTY


@value
class SyscallArg:
    """A comparison with one argument: SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ, …"""

    index: uint32
    value: uint64
    op: str
    value_two: uint64 = 0


@value
class SyscallRule:
    """What happens to these calls when all comparisons hold."""

    names: tuple[str, ...]
    action: str
    errno_ret: uint32 | None = None
    args: tuple[SyscallArg, ...] = ()


@value
class Seccomp:
    """A system call filter in libseccomp's words."""

    default_action: str
    default_errno_ret: uint32 | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SyscallRule, ...] = ()


@value
class Personality:
    """personality(2): LINUX or LINUX32."""

    domain: str
    flags: tuple[str, ...] = ()


@value
class IntelRdt:
    """Cache and memory bandwidth allocation."""

    clos_id: str = ""
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    enable_monitoring: bool = False


@value
class MemoryPolicy:
    """set_mempolicy(2)."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


@value
class NetDevice:
    """A host interface that moves in; ``name`` is its name inside."""

    name: str = ""


@value
class Linux:
    """All that only Linux has."""

    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    sysctl: Mapping[str, str] = EMPTY
    resources: Resources | None = None
    cgroups_path: str = ""
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    net_devices: Mapping[str, NetDevice] = EMPTY
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
    time_offsets: Mapping[str, TimeOffset] = EMPTY


@value
class Config:
    """A bundle's configuration."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = EMPTY
    linux: Linux = Linux()


# Where the specification's JSON name is not the plain camelCase of ours.
_codec = Codec(
    globals(),
    {
        "class_": "class",
        "container_id": "containerID",
        "host_id": "hostID",
        "class_id": "classID",
        "clos_id": "closID",
        "block_io": "blockIO",
        "kernel_tcp": "kernelTCP",
        "disable_oom_killer": "disableOOMKiller",
        "throttle_read_iops_device": "throttleReadIOPSDevice",
        "throttle_write_iops_device": "throttleWriteIOPSDevice",
        "exec_cpu_affinity": "execCPUAffinity",
    },
    always=("cwd",),
)


def parse(raw: bytes) -> Config:
    """A ``config.json``. Raises Invalid, never anything else."""
    config = _codec.parse(Config, raw, "config.json")
    major, _, rest = config.oci_version.partition(".")
    minor, _, patch = rest.partition(".")
    if major != "1" or not (minor + (patch or "0")[0]).isdigit() or not minor or not config.oci_version.isascii():
        raise Invalid(
            f"config.json is of runtime-spec version {config.oci_version!r}; this runtime speaks {VERSION}",
            hint="every 1.x version is understood",
        )
    return config


def config_of(item: object, what: str) -> Config:
    """A config that is part of a larger document, parsed already; ``what`` names that in the error."""
    return _codec.convert(Config, item, what)


def parse_process(raw: bytes) -> Process:
    """The document of ``exec --process``."""
    return _codec.parse(Process, raw, "the process document")


def parse_resources(raw: bytes) -> Resources:
    """The document of ``update --resources``."""
    return _codec.parse(Resources, raw, "the resources document")


def parse_mounts(raw: bytes) -> tuple[Mount, ...]:
    """The document of ``mounts add`` and ``mounts remove``: a config's list of mounts alone."""
    found = document.parse(raw, "the mounts document")
    if not isinstance(found, tuple | list):
        raise Invalid("the mounts document is not a list")
    return tuple(_codec.convert(Mount, item, "the mounts document") for item in found)


def dump(item: object) -> bytes:
    """Any of these values as JSON; defaults are left out."""
    return _codec.dump(item)
