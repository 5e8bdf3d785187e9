"""What is known: the caller's variables, memory and keys, the kernel's and the firmware's own data."""

from __future__ import annotations

from mamushka.engine.audit.canaries import SECRET_SIZE, SHARED
from mamushka.engine.audit.probe import Probe, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit.attempts import Attempts
    from mamushka.engine.audit.probe import Ground, Seen

_SYSLOG_ACTION_READ_ALL = 3
_KEYCTL_READ, _SHM_RDONLY = 11, 0o10000
_INTERNALS = (
    "/proc/acpi/wakeup", "/proc/interrupts", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/timer_list",
)  # fmt: skip
_DMI = "/sys/devices/virtual/dmi/id"
_SERIALS = ("product_serial", "product_uuid", "board_serial", "chassis_serial")
_FIRMWARE = ("/sys/firmware", "/sys/firmware/efi/efivars", "/proc/acpi", "/sys/devices/virtual/powercap")
_DEBUG = ("/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/pstore", "/sys/fs/bpf")
# What every program may know of its caller's environment.
_PLAIN = frozenset(("HOME", "HOSTNAME", "LANG", "LC_ALL", "PATH", "PWD", "SHLVL", "TERM", "TZ", "_"))


def _try_environment(attempts: Attempts, _: Ground) -> None:
    attempts.read("environment", b"/proc/self/environ")


def _judge_environment(seen: Seen, ground: Ground) -> str:
    inside = set(seen.content("environment read").decode(errors="surrogateescape").split("\0"))
    names = [entry.partition("=")[0] for entry in ground.environment if entry in inside]
    reached = ", ".join(sorted(set(names) - _PLAIN))
    return f"variables of the caller's: {reached}" if reached else ""


def _try_memory(attempts: Attempts, ground: Ground) -> None:
    """Attach the segment, and copy what is there through a pipe."""
    with attempts.where(attempts.step("segment", "shmat", ground.canaries.segment, SHARED, _SHM_RDONLY)):
        attempts.copy("segment read", SHARED, SECRET_SIZE)


def _judge_memory(seen: Seen, ground: Ground) -> str:
    found = seen.content("segment read") == ground.canaries.memory
    return "the content of a segment of the host's System V memory" if found else ""


def _try_key(attempts: Attempts, ground: Ground) -> None:
    attempts.step("key read", "keyctl", _KEYCTL_READ, ground.canaries.key, attempts.room, SECRET_SIZE, keep=True)


def _judge_key(seen: Seen, ground: Ground) -> str:
    return "the content of a key of the host's" if seen.content("key read") == ground.canaries.memory else ""


def _try_arguments(attempts: Attempts, ground: Ground) -> None:
    attempts.read("arguments", f"/proc/{ground.canaries.pid}/cmdline".encode())
    attempts.read("variables", f"/proc/{ground.canaries.pid}/environ".encode())


def _judge_arguments(seen: Seen, ground: Ground) -> str:
    found = ground.canaries.argument in seen.content("arguments read")
    return "the arguments of a process of the host's" if found else ""


def _judge_variables(seen: Seen, ground: Ground) -> str:
    found = ground.canaries.variable in seen.content("variables read")
    return "the environment of a process of the host's" if found else ""


def _try_kernel(attempts: Attempts, _: Ground) -> None:
    attempts.read("kcore", b"/proc/kcore", 64)
    attempts.read("kallsyms", b"/proc/kallsyms", 4096)
    attempts.step("syslog read", "syslog", _SYSLOG_ACTION_READ_ALL, attempts.room, 1024, keep=True)


def _judge_kcore(seen: Seen, _: Ground) -> str:
    return "all memory, by /proc/kcore" if seen.content("kcore read") else ""


def _judge_addresses(seen: Seen, _: Ground) -> str:
    rows = seen.content("kallsyms read").split(b"\n")[:-1]
    return "addresses in /proc/kallsyms" if any(row.split()[0].strip(b"0") for row in rows if row.split()) else ""


def _judge_syslog(seen: Seen, _: Ground) -> str:
    return "the kernel's log" if seen.done("syslog read") else ""


def _try_internals(attempts: Attempts, _: Ground) -> None:
    for path in _INTERNALS:
        attempts.read(f"internal {path}", path.encode(), 256)


def _judge_internals(seen: Seen, _: Ground) -> str:
    return ", ".join(path for path in _INTERNALS if seen.content(f"internal {path} read"))


def _try_serials(attempts: Attempts, _: Ground) -> None:
    for name in _SERIALS:
        attempts.read(f"serial {name}", f"{_DMI}/{name}".encode(), 256)


def _judge_serials(seen: Seen, _: Ground) -> str:
    return ", ".join(name for name in _SERIALS if seen.content(f"serial {name} read").strip())


def _try_firmware(attempts: Attempts, _: Ground) -> None:
    for path in _FIRMWARE + _DEBUG:
        attempts.list(f"tree {path}", path.encode())


def _listed(seen: Seen, paths: tuple[str, ...]) -> str:
    return ", ".join(path for path in paths if entries(seen.content(f"tree {path} list")))


def _judge_firmware(seen: Seen, _: Ground) -> str:
    return _listed(seen, _FIRMWARE)


def _judge_debug(seen: Seen, _: Ground) -> str:
    return _listed(seen, _DEBUG)


PROBES = (
    Probe(
        "environment",
        "secrets",
        30,
        "the caller's environment",
        "tokens and passwords are kept there",
        "hand on variables one by one: -e NAME=value",
        _judge_environment,
        _try_environment,
    ),
    Probe(
        "shared-memory",
        "secrets",
        30,
        "System V memory of the host",
        "databases keep their caches there",
        "no --ipc host",
        _judge_memory,
        _try_memory,
    ),
    Probe(
        "keyring",
        "secrets",
        30,
        "keys of the host",
        "disks, Kerberos and file systems are opened with them",
        "no seccomp=unconfined, no --cap-add SYS_ADMIN",
        _judge_key,
        _try_key,
    ),
    Probe(
        "process-arguments",
        "secrets",
        20,
        "arguments of the host's processes",
        "passwords are often among them",
        "no --pid host",
        _judge_arguments,
        _try_arguments,
    ),
    Probe(
        "process-environment",
        "secrets",
        40,
        "environment of the host's processes",
        "tokens and passwords are kept there",
        "no --pid host",
        _judge_variables,
    ),
    Probe(
        "kernel-memory",
        "secrets",
        60,
        "the kernel's memory",
        "every secret of this machine is in it",
        "no --privileged",
        _judge_kcore,
        _try_kernel,
    ),
    Probe(
        "kernel-addresses",
        "secrets",
        10,
        "addresses of the kernel",
        "attacks on the kernel need them",
        "no --privileged, no --cap-add SYSLOG",
        _judge_addresses,
    ),
    Probe(
        "kernel-log",
        "secrets",
        10,
        "the kernel's log",
        "it tells of devices, addresses and other workloads",
        "no --privileged, no --cap-add SYSLOG",
        _judge_syslog,
    ),
    Probe(
        "kernel-internals",
        "secrets",
        5,
        "tables of the kernel",
        "they tell of other workloads and of what they do when",
        "no --privileged, no --security-opt unmask",
        _judge_internals,
        _try_internals,
    ),
    Probe(
        "serials",
        "secrets",
        5,
        "serial numbers of the machine",
        "they tell who the customer is, and that two workloads share a machine",
        "--user, for only root may read them",
        _judge_serials,
        _try_serials,
    ),
    Probe(
        "firmware",
        "secrets",
        10,
        "the firmware's tables and variables",
        "they hold keys, and power meters that betray others' work",
        "no --privileged, no --security-opt unmask",
        _judge_firmware,
        _try_firmware,
    ),
    Probe(
        "debugging",
        "secrets",
        20,
        "debugging file systems",
        "they trace every process and change the kernel",
        "no -v /sys, no --privileged",
        _judge_debug,
    ),
)
