"""What may be done: identity, capabilities, filter, namespaces, the kernel's own switches, and engines' sockets.

Nothing is done that would change the host, also where it is allowed: a call gets arguments that cannot be right, and
the kernel asks for permission before it looks at them; a file is opened for writing, and not written.
"""

from __future__ import annotations

import os
import socket

from mamushka.engine.audit.network import connect
from mamushka.engine.audit.probe import Probe, Seen
from mamushka.linux import capabilities
from mamushka.linux.abi import MACHINE
from mamushka.linux.executable import words
from mamushka.linux.process import CLONE_NEWNS, CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit.attempts import Attempts
    from mamushka.engine.audit.probe import Ground

_NEVER = 0x7FFFFFF  # flags, segments and magic that nobody has
_BPF_MAP_CREATE, _KEYCTL_GET_KEYRING_ID, _KEY_SPEC_USER_KEYRING = 0, 0, -4
_MOUNT_AT = b"/dev"  # the one directory that every container has; what is mounted is in a namespace of the child's
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_DUMMY, _PERF_ATTR_SIZE = 1, 9, 64
_SUN_PATH = 108  # unix(7); with the zero byte at the end
# Docker's fourteen are held by most containers; each further one is a key to some part of the host.
_USUAL = frozenset(
    f"CAP_{name}" for name in (
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
        "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    )
)  # fmt: skip
_NAMED = 4  # of a long list
_SWITCHES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches",
)  # fmt: skip
_SYSFS = ("/sys/kernel/uevent_helper", "/sys/kernel/rcu_expedited", "/sys/kernel/mm/ksm/run", "/sys/power/state")
_CGROUPS = (
    "", "/unified", "/memory", "/pids", "/cpu", "/cpu,cpuacct", "/cpuset", "/blkio", "/devices", "/freezer", "/hugetlb",
    "/misc", "/net_cls", "/perf_event", "/rdma",
)  # fmt: skip
_SOCKETS = (
    "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
    "/run/crio/crio.sock", "/run/buildkit/buildkitd.sock", "/run/dbus/system_bus_socket", "/run/systemd/private",
    "/var/lib/kubelet/pod-resources/kubelet.sock",
)  # fmt: skip


def _try_status(attempts: Attempts, _: Ground) -> None:
    attempts.read("status", b"/proc/self/status")
    attempts.read("uid_map", b"/proc/self/uid_map")


def _status(seen: Seen, field: str) -> str:
    """A line of /proc/self/status; empty where there is none."""
    for line in seen.content("status read").decode(errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return rest.strip()
    return ""


def _blind(seen: Seen) -> str:
    """Without a procfs nothing says that rights are few, and what cannot be told counts as reached."""
    return "" if seen.content("status read") else "it cannot be told: there is no /proc/self/status"


def _judge_root(seen: Seen, _: Ground) -> str:
    if _blind(seen):
        return _blind(seen)
    uid = _status(seen, "Uid").split()
    first = seen.content("uid_map read").split()[:2]
    return "user 0 here is user 0 of the host" if uid[:1] == ["0"] and first == [b"0", b"0"] else ""


def _capabilities(seen: Seen) -> frozenset[str]:
    held = _status(seen, "CapEff") or "0"
    return frozenset(capabilities.names(int(held, 16)))


def _judge_usual(seen: Seen, _: Ground) -> str:
    found = _capabilities(seen) & _USUAL
    return f"{len(found)} of Docker's fourteen" if found else _blind(seen)


def _judge_further(seen: Seen, _: Ground) -> str:
    found = sorted(name.removeprefix("CAP_") for name in _capabilities(seen) - _USUAL)
    if len(found) > _NAMED:
        return f"{', '.join(found[:_NAMED])} and {len(found) - _NAMED} more"
    return ", ".join(found) or _blind(seen)


def _judge_new_privileges(seen: Seen, _: Ground) -> str:
    return "set-user-id programs give their owner's rights" if _status(seen, "NoNewPrivs") == "0" else _blind(seen)


def _judge_filter(seen: Seen, _: Ground) -> str:
    return "no system call is filtered" if _status(seen, "Seccomp") == "0" else _blind(seen)


def _try_namespaces(attempts: Attempts, _: Ground) -> None:
    with attempts.child():
        attempts.step("unshare user", "unshare", CLONE_NEWUSER)
    with attempts.child():
        error, fd = attempts.open("ns", b"/proc/self/ns/uts")
        with attempts.where(error):
            attempts.step("setns", "setns", fd, 0)
    with attempts.child(), attempts.where(attempts.step("unshare mount", "unshare", CLONE_NEWNS)):
        attempts.step("mount tmpfs", "mount", b"audit", _MOUNT_AT, b"tmpfs", 0, 0)
        attempts.step("mount proc", "mount", b"audit", _MOUNT_AT, b"proc", 0, 0)


def _judge_user_namespace(seen: Seen, _: Ground) -> str:
    return "user namespaces can be made" if seen.done("unshare user") else ""


def _judge_mount(seen: Seen, _: Ground) -> str:
    found = [name for name in ("tmpfs", "proc") if seen.done(f"mount {name}")]
    return f"{' and '.join(found)} can be mounted" if found else ""


def _judge_setns(seen: Seen, _: Ground) -> str:
    return "namespaces can be entered" if seen.done("setns") else ""


def _try_kernel(attempts: Attempts, _: Ground) -> None:
    """Permission comes first in each: kernel/module/main.c, kernel/kexec.c, kernel/reboot.c, kernel/time/time.c."""
    attempts.step("module", "init_module", 0, 0, b"")
    attempts.step("kexec", "kexec_load", 0, _NEVER, 0, _NEVER)
    attempts.step("reboot", "reboot", 0, 0, 0, 0)
    attempts.step("clock", "settimeofday", 0, 0)
    if MACHINE == "x86_64":
        with attempts.child():
            attempts.step("ports", "iopl", 3)


_KERNEL = {
    "module": "load modules", "kexec": "load another kernel", "reboot": "restart the machine", "clock": "set the clock",
    "ports": "speak to hardware ports",
}  # fmt: skip


def _judge_kernel(seen: Seen, _: Ground) -> str:
    return ", ".join(text for name, text in _KERNEL.items() if seen.allowed(name))


def _try_surface(attempts: Attempts, _: Ground) -> None:
    attribute = words([_PERF_TYPE_SOFTWARE, _PERF_ATTR_SIZE], 4) + words([_PERF_COUNT_SW_DUMMY], 8) + bytes(48)
    fd = attempts.variable()
    attempts.step("bpf", "bpf", _BPF_MAP_CREATE, attempts.script.place(bytes(64)), 64)
    for name, call, arguments in (
        ("perf", "perf_event_open", (attempts.script.place(attribute), 0, -1, -1, 0)),
        ("userfaultfd", "userfaultfd", (0,)),
    ):
        with attempts.where(attempts.step(name, call, *arguments, into=fd)):
            attempts.close(fd)
    attempts.step("io_uring", "io_uring_setup", 0, 0)
    attempts.step("keyrings", "keyctl", _KEYCTL_GET_KEYRING_ID, _KEY_SPEC_USER_KEYRING, 0)


def _judge_surface(seen: Seen, _: Ground) -> str:
    return ", ".join(name for name in ("bpf", "perf", "userfaultfd", "io_uring", "keyrings") if seen.allowed(name))


def _try_switches(attempts: Attempts, _: Ground) -> None:
    for path in _SWITCHES + _SYSFS:
        attempts.writable(f"switch {path}", path.encode())
    for name in _CGROUPS:
        for file in ("release_agent", "devices.allow", "cgroup.procs"):
            attempts.writable(f"cgroup {name}/{file}", f"/sys/fs/cgroup{name}/{file}".encode())


def _open(seen: Seen, paths: tuple[str, ...]) -> str:
    return ", ".join(path for path in paths if seen.done(f"switch {path}"))


def _cgroup(seen: Seen, *files: str) -> str:
    found = [
        f"/sys/fs/cgroup{name}/{file}" for file in files for name in _CGROUPS if seen.done(f"cgroup {name}/{file}")
    ]
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")


def _try_sockets(attempts: Attempts, ground: Ground) -> None:
    shims = ground.places(ground.shim) if ground.shim else ()
    for path in _candidates(ground):
        kind = socket.SOCK_SEQPACKET if path in shims else socket.SOCK_STREAM
        address = words([socket.AF_UNIX], 2) + os.fsencode(path) + b"\0"
        connect(attempts, f"engine {path}", socket.AF_UNIX, kind, address)


def _candidates(ground: Ground) -> tuple[str, ...]:
    """Where engines and agents listen, and whatever was handed over that is a socket."""
    agent = next((entry[14:] for entry in ground.environment if entry.startswith("SSH_AUTH_SOCK=/")), "")
    outside = [*_SOCKETS, *filter(None, (agent, ground.shim))]
    found = [place for path in outside for place in ground.places(path)]
    found += [mount.destination for mount in ground.mounts if mount.kind == "bind"]
    return tuple(dict.fromkeys(path for path in found if len(os.fsencode(path)) < _SUN_PATH))


def _judge_sockets(seen: Seen, ground: Ground) -> str:
    return ", ".join(path for path in _candidates(ground) if seen.done(f"engine {path}"))


PROBES = (
    Probe(
        "root",
        "privileges",
        10,
        "user 0 of the host",
        "what the host shares is touched as its root",
        "--userns private, or --user",
        _judge_root,
        _try_status,
    ),
    Probe(
        "capabilities",
        "privileges",
        5,
        "capabilities",
        "each lets a flaw in the kernel be reached",
        "--cap-drop ALL",
        _judge_usual,
    ),
    Probe(
        "further-capabilities",
        "privileges",
        40,
        "capabilities beyond the usual",
        "each is a key to a part of the host",
        "no --privileged, no --cap-add",
        _judge_further,
    ),
    Probe(
        "new-privileges",
        "privileges",
        10,
        "set-user-id programs",
        "a user inside becomes root inside",
        "no --security-opt no-new-privileges=false",
        _judge_new_privileges,
    ),
    Probe(
        "filter",
        "privileges",
        20,
        "all system calls",
        "three hundred calls, each a place for a flaw",
        "no seccomp=unconfined",
        _judge_filter,
    ),
    Probe(
        "user-namespaces",
        "privileges",
        10,
        "user namespaces",
        "root inside one reaches parts of the kernel that users should not",
        "no seccomp=unconfined",
        _judge_user_namespace,
        _try_namespaces,
    ),
    Probe(
        "mount",
        "privileges",
        40,
        "mounting",
        "procfs anew has no masks, and devices hold file systems",
        "no --cap-add SYS_ADMIN",
        _judge_mount,
    ),
    Probe(
        "setns",
        "privileges",
        20,
        "entering namespaces",
        "with a descriptor or a process of the host's it leads out",
        "no --cap-add SYS_ADMIN",
        _judge_setns,
    ),
    Probe(
        "kernel",
        "privileges",
        60,
        "the kernel itself",
        "whoever loads code into it owns the machine",
        "no --privileged, no --cap-add SYS_MODULE, SYS_BOOT, SYS_TIME, SYS_RAWIO",
        _judge_kernel,
        _try_kernel,
    ),
    Probe(
        "surface",
        "privileges",
        10,
        "calls with a history of flaws",
        "most ways out of containers began there",
        "no seccomp=unconfined",
        _judge_surface,
        _try_surface,
    ),
    Probe(
        "switches",
        "privileges",
        60,
        "switches of the kernel",
        "core_pattern names a program that the host runs",
        "no --privileged, no --security-opt unmask",
        lambda seen, ground: _open(seen, _SWITCHES),
        _try_switches,
    ),
    Probe(
        "sysfs",
        "privileges",
        20,
        "sysfs, to be written",
        "it configures devices and the kernel",
        "no --privileged",
        lambda seen, ground: _open(seen, _SYSFS),
    ),
    Probe(
        "release-agent",
        "privileges",
        60,
        "a cgroup's release agent",
        "it names a program that the host runs",
        "no --privileged, no --cgroupns host",
        lambda seen, ground: _cgroup(seen, "release_agent"),
    ),
    Probe(
        "cgroups",
        "privileges",
        20,
        "cgroups, to be written",
        "limits and the list of devices can be lifted",
        "no --privileged",
        lambda seen, ground: _cgroup(seen, "devices.allow", "cgroup.procs"),
    ),
    Probe(
        "engines",
        "privileges",
        100,
        "sockets that were handed over",
        "whoever speaks to an engine is root",
        "no -v of a socket",
        _judge_sockets,
        _try_sockets,
    ),
)
