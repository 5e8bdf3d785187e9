"""What a container gets when nobody says otherwise: Docker's choices, as runtime-spec values."""

from __future__ import annotations

from mamushka.filesystems import DEVICES
from mamushka.spec.runtime import Capabilities, DeviceRule, Mount, Namespace

CAPABILITY_NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
# Not inheritable: a program with file capabilities would get them back after setuid (CVE-2022-24769).
CAPABILITIES = Capabilities(bounding=CAPABILITY_NAMES, effective=CAPABILITY_NAMES, permitted=CAPABILITY_NAMES)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/dmi",  # not among Docker's: serial numbers tell which machine this is
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

MOUNTS = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
)

NAMESPACES = tuple(Namespace(kind) for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup"))


def _allow(kind: str, major: int | None, minor: int | None, access: str) -> DeviceRule:
    return DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)


# Deny all, then: any node may be made, the default devices, terminals and /dev/net/tun's absence as Docker has it.
DEVICE_RULES = (
    DeviceRule(allow=False, access="rwm"),
    _allow("c", None, None, "m"),
    _allow("b", None, None, "m"),
    *(_allow(device.type, device.major, device.minor, "rwm") for device in DEVICES),
    _allow("c", 5, 1, "rwm"),
    _allow("c", 5, 2, "rwm"),
    _allow("c", 136, None, "rwm"),
)

# The annotation with the policy of landlock.py.
LANDLOCK = "org.mamushka.landlock"

# What every process needs that names no other.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
