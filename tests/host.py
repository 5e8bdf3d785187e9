"""What a host looks like from outside: everything that a run may leave behind, as one comparable value.

The suite takes it first and last, and any difference fails by name. A crash-only design stands or falls with
this comparison, so it looks where nobody else's bookkeeping can lie: into the kernel.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection
from typing import NamedTuple

CGROUPS = "/sys/fs/cgroup"
ROOTS = ("/run/mamushka", "/var/lib/mamushka", "/run/netns")
SYSCTLS = (
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "kernel/core_pattern",
    "kernel/hostname",
    "kernel/panic",
)


# What is the whole machine's, not the session's namespaces': others who work here change it.
SHARED = ("cgroups", "files", "processes")


class Host(NamedTuple):
    """One look at the host; each field a set of lines."""

    mounts: frozenset[str]
    links: frozenset[str]
    packet_filter: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    processes: frozenset[str]
    sysctls: frozenset[str]


def look() -> Host:
    """The host as it is now, seen from this process's namespaces."""
    return Host(_mounts(), _links(), _packet_filter(), _cgroups(), _files(), _processes(), _sysctls())


def rested(*, patience: float = 5.0) -> Host:
    """A look once the shims of workloads that ended before have taken their links away; they do so after the end."""
    deadline = time.monotonic() + patience
    while any(link.startswith("mk") for link in _links()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return look()


def difference(before: Host, after: Host, *, ignore: Collection[str] = ()) -> list[str]:
    """What came (+) and what went (-), one line each, but for the fields to ignore."""
    lines = []
    for field, old, new in zip(Host._fields, before, after, strict=True):
        if field in ignore:
            continue
        lines += [f"+ {field}: {line}" for line in sorted(new - old)]
        if field != "processes":
            lines += [f"- {field}: {line}" for line in sorted(old - new)]
    return lines


def settled(before: Host, *, patience: float = 5.0, ignore: Collection[str] = ()) -> list[str]:
    """The difference once it no longer shrinks: shims that are just ending get ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while (left := difference(before, look(), ignore=ignore)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def _output(*command: str) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return []


def _mounts() -> frozenset[str]:
    rows = (line.split(" ") for line in _lines("/proc/self/mountinfo"))
    return frozenset(f"{row[4]} ({row[row.index('-') + 1]})" for row in rows)


def _links() -> frozenset[str]:
    names = (line.split(":")[1].strip() for line in _output("ip", "-o", "link"))
    return frozenset(name.split("@")[0] for name in names)


def _packet_filter() -> frozenset[str]:
    return frozenset(line.strip() for line in _output("nft", "list", "ruleset") if line.strip(" }\t"))


def _cgroups() -> frozenset[str]:
    found = set()
    for directory, children, _ in os.walk(CGROUPS):
        found |= {os.path.join(directory, child) for child in children if child.startswith("mamushka")}
        if "mamushka" in directory:
            found.add(directory)
    return frozenset(found)


def _files() -> frozenset[str]:
    found = set()
    for root in ROOTS:
        for directory, children, files in os.walk(root):
            if "seccomp" in children:
                children.remove("seccomp")  # compiled filters, kept on purpose
            found |= {os.path.join(directory, name) for name in (*children, *files)}
    return frozenset(found)


def _processes() -> frozenset[str]:
    """Ours by cgroup, or by a command line that is this process's own (a fork) or names mamushka."""
    mine = command_line(os.getpid())
    family = _ancestors() | {os.getpid()}
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in family:
            continue
        command = command_line(int(entry))
        inside = any("mamushka" in line.partition(":/")[2] for line in _lines(f"/proc/{entry}/cgroup"))
        if inside or (command and (command == mine or "/mamushka" in command)):
            found.add(f"{entry} {command or 'ended, not reaped'}")
    return frozenset(found)


def command_line(pid: int) -> str:
    """A process's words; empty where it has ended, or is in the middle of execve."""
    return " ".join(_lines(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0:
        found.add(pid)
        stat = "".join(_lines(f"/proc/{pid}/stat"))
        pid = int(stat.rpartition(")")[2].split()[1]) if stat else 0
    return found


def _sysctls() -> frozenset[str]:
    return frozenset(f"{name} = {' '.join(_lines('/proc/sys/' + name))}" for name in SYSCTLS)


def lacks_criu() -> str:
    """Why nothing can be checkpointed here, as a sentence; empty where it can."""
    import subprocess

    from tests import peers

    if not peers.find("criu"):
        return "criu not installed: apt-get install criu"
    done = subprocess.run([peers.find("criu"), "check"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return ""
    return f"criu check fails here: {done.stderr.strip().splitlines()[0]}"
