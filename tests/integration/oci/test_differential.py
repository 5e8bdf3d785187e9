"""Random valid bundles, run by us and by runc: what the process inside sees is compared field by field.

Each difference is a bug of ours, or stands in ``DIFFERENT`` with its reason. What runc 1.1 does not know (time
namespaces, idmapped mounts, …) is not drawn; that has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mamushka.linux import capabilities
from tests import peers
from tests.integration.oci.conftest import PROGRAM

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.slow]

EXAMPLES = int(os.environ.get("MAMUSHKA_EXAMPLES", "30"))
HELD = capabilities.names(capabilities.current()[1])

# What differs on purpose; each is taken out of both before they are compared.
DIFFERENT = {
    "keyring": "its name begins with the runtime's; that it is new, whose it is and who may do what is compared. "
    "In a user namespace runc lets others search it; ours needs only its user",
    "tun": "by default runc 1.1 lets everyone use /dev/net/tun, and nobody /dev/console",
    "home": "where the image has no accounts, root's home is /root with us and / with runc",
    "mqueue": "with ids of its own a container's /dev/mqueue belongs to the host's root with us; anybody may use it",
    "superblock": "a filesystem that is mounted ro says so twice with runc: of the mount, and of itself",
    "mask": "the empty directory over a masked one is nosuid, nodev and noexec with us",
    "below": "what is mounted below a read-only path is read-only too with us; with runc it stays writable",
    "go": "the Go of runc 1.1 raises its own soft RLIMIT_NOFILE, and so that of a further process",
    "exec": "runc 1.1 passes over the umask and the oomScoreAdj of a further process: the container's are in force",
    "cgroup": "we join the hierarchies that limit or count something; runc joins all",
}

# Strategies


def some(*items: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(items), unique=True).map(tuple)


IDS = st.sampled_from((0, 1, 1000, 65534))
LIMITS = {
    "NOFILE": 4096,
    "CORE": 1 << 30,
    "FSIZE": 1 << 40,
    "STACK": 8 << 20,
    "NPROC": 4000,
    "CPU": 5000,
    "DATA": 1 << 32,
}
FLAGS = ("nosuid", "nodev", "noexec")
ATIMES = ("noatime", "relatime", "strictatime", "nodiratime", "")
PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "unbindable", "")
MASKABLE = (
    "/proc/kcore",
    "/proc/keys",
    "/sys/firmware",
    "/data/file",
    "/data/directory",
    "/nothing/there",
    "/proc/scsi",
)
READABLE = ("/proc/sys", "/proc/bus", "/data", "/data/file", "/proc/irq", "/nothing/there")
SYSCTLS = {
    "network": {"net.ipv4.ip_forward": "1", "net.core.somaxconn": "77", "net/ipv4/ip_default_ttl": "33"},
    "ipc": {"kernel.msgmax": "9000", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "12"},
    "uts": {},
}


@st.composite
def capability_sets(draw: Any) -> Any:
    bounding = draw(some(*HELD))
    permitted = draw(some(*bounding)) if bounding else ()
    effective = draw(some(*permitted)) if permitted else ()
    inheritable = draw(some(*permitted)) if permitted else ()
    ambient = draw(some(*inheritable)) if inheritable else ()
    sets = {"bounding": bounding, "permitted": permitted, "effective": effective, "inheritable": inheritable}
    return {**sets, "ambient": ambient}


@st.composite
def processes(draw: Any) -> dict[str, Any]:
    user = {"uid": draw(IDS), "gid": draw(IDS), "additionalGids": draw(some(3, 4, 50, 1000))}
    if draw(st.booleans()):
        user["umask"] = draw(st.sampled_from((0o22, 0o77, 0o2, 0)))
    limits = []
    for name in draw(some(*LIMITS)):
        hard = draw(st.integers(LIMITS[name] // 2, LIMITS[name]))
        limits.append({"type": f"RLIMIT_{name}", "hard": hard, "soft": draw(st.sampled_from((hard, hard // 2)))})
    process = {
        "terminal": False, "user": user, "cwd": draw(st.sampled_from(("/", "/tmp", "/made/here", "/data"))),
        "env": ["PATH=/bin", *draw(some("A=b", "EMPTY=", "TERM=xterm", "A=again", "HOME=/elsewhere", "WITH=a=b"))],
        "capabilities": draw(capability_sets()), "rlimits": limits, "noNewPrivileges": draw(st.booleans()),
    }  # fmt: skip
    if draw(st.booleans()):
        process["oomScoreAdj"] = draw(st.sampled_from((0, 100, 1000)))
    return process


@st.composite
def further_mounts(draw: Any, host: str) -> list[dict[str, Any]]:
    # With ids of its own runc cannot change what the host's mounts are locked to: without a host, none of them.
    found = []
    for number in range(draw(st.integers(0, 3))):
        options = [*draw(some(*FLAGS)), draw(st.sampled_from(("ro", "rw", ""))), draw(st.sampled_from(ATIMES))]
        kind = draw(st.sampled_from(("tmpfs", "bind", "file", "rbind") if host else ("tmpfs",)))
        where = draw(st.sampled_from((f"/mounted{number}", f"/deep/er/{number}", f"/data/directory/{number}")))
        if kind == "tmpfs":
            options += draw(some("size=64k", "mode=700", "uid=5", "nr_inodes=100"))
            entry: dict[str, Any] = {"type": "tmpfs", "source": "tmpfs"}
        else:
            options += ["rbind" if kind == "rbind" else "bind", draw(st.sampled_from(PROPAGATIONS))]
            entry = {"type": "bind", "source": f"{host}/shared" + ("/file" if kind == "file" else "")}
        found.append({"destination": where, **entry, "options": [word for word in options if word]})
    return found


@st.composite
def devices(draw: Any) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(0, 2))):
        kind, major, minor = draw(st.sampled_from((("c", 1, 3), ("c", 10, 200), ("b", 7, 0), ("p", None, None))))
        entry = {"path": draw(st.sampled_from((f"/dev/own{number}", f"/dev/deep/own{number}"))), "type": kind}
        if major is not None:
            entry.update({"major": major, "minor": minor})
        entry.update({"fileMode": draw(st.sampled_from((0o600, 0o666, 0o640))), "uid": draw(IDS), "gid": draw(IDS)})
        found.append(entry)
    return found


@st.composite
def configs(draw: Any, host: str) -> dict[str, Any]:
    kinds = ["mount", *draw(some("pid", "network", "ipc", "uts", "cgroup"))]
    mapped = draw(st.integers(0, 5)) == 0
    if mapped:
        kinds = ["mount", "pid", "network", "ipc", "uts", "user"]
    sysctls = {}
    for kind in draw(some("network", "ipc")):
        if kind in kinds and not mapped:
            sysctls.update({name: SYSCTLS[kind][name] for name in draw(some(*SYSCTLS[kind]))})
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": draw(some(*MASKABLE)), "readonlyPaths": draw(some(*READABLE)), "sysctl": sysctls,
        "devices": [] if mapped else draw(devices()), "resources": draw(resources()),
        "rootfsPropagation": draw(st.sampled_from(("", "private", "rprivate", "slave", "rslave"))),
    }  # fmt: skip
    if mapped:
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    if draw(st.booleans()):
        linux["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["sync"], "action": draw(st.sampled_from(("SCMP_ACT_ERRNO", "SCMP_ACT_LOG")))}],
        }
    config: dict[str, Any] = {
        "ociVersion": "1.0.2", "process": draw(processes()),
        "root": {"path": "rootfs", "readonly": draw(st.booleans()) and not mapped},
        "mounts": [*base(mapped), *draw(further_mounts("" if mapped else host))], "linux": linux,
    }  # fmt: skip
    if "uts" in kinds:
        config["hostname"] = draw(st.sampled_from(("box", "a-name", "")))
    if mapped:
        config["process"].pop("oomScoreAdj", None)
    return config


@st.composite
def resources(draw: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    found["devices"] += draw(some("c 1:3", "c 10:229", "b 7:*"))
    found["devices"] = [rule if isinstance(rule, dict) else _rule(rule) for rule in found["devices"]]
    if draw(st.booleans()):
        found["memory"] = {"limit": 128 << 20, **({"reservation": 64 << 20} if draw(st.booleans()) else {})}
    if draw(st.booleans()):
        found["cpu"] = {"shares": draw(st.sampled_from((2, 512, 1024))), "quota": 50000, "period": 100000}
    if draw(st.booleans()):
        found["pids"] = {"limit": draw(st.sampled_from((-1, 0, 50)))}
    return found


def _rule(text: str) -> dict[str, Any]:
    kind, number = text.split()
    major, minor = number.split(":")
    rule = {"allow": True, "type": kind, "major": int(major), "access": "rw"}
    return {**rule, "minor": int(minor)} if minor != "*" else rule


def base(mapped: bool) -> list[dict[str, Any]]:
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *([] if mapped else ["gid=5"])]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        *([] if mapped else [{"destination": "/sys", "type": "sysfs", "source": "sysfs",
                              "options": ["nosuid", "noexec", "nodev", "ro"]}]),
    ]  # fmt: skip


# Running


class Ground:
    """A bundle's directory with the probe for a root, and the two runtimes."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.cgroup = base, f"/{name}"
        self.programs = {
            "ours": [PROGRAM, "--root", f"{base}/ours"],
            "runc": [peers.find("runc"), "--root", f"{base}/runc"],
        }
        os.makedirs(f"{base}/shared/below")
        with open(f"{base}/shared/file", "w") as file:
            file.write("shared\n")

    def root(self, owner: int, accounts: bool) -> None:
        """A root as it was at first: what a run makes in it must not be there for the next."""
        root = f"{self.base}/rootfs"
        if os.path.exists(root):
            shutil.rmtree(root)
        for directory in ("bin", "data/directory/in", "tmp", "etc"):
            os.makedirs(f"{root}/{directory}")
        if accounts:
            with open(f"{root}/etc/passwd", "w") as file:
                file.write("root:x:0:0::/root/home:/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n")
        os.link(f"{self.base}/probe", f"{root}/bin/probe")
        with open(f"{root}/data/file", "w") as file:
            file.write("data\n")
        for directory, _, _ in os.walk(root):
            os.chown(directory, owner, owner)

    def see(self, which: str, config: dict[str, Any], *, accounts: bool = True) -> dict[str, list[str]]:
        """What the probe tells, and what the cgroup's files hold meanwhile."""
        self.root(100000 if config["linux"].get("uidMappings") else 0, accounts)
        with open(f"{self.base}/config.json", "w") as file:
            json.dump(config, file)
        program = self.programs[which]
        null = subprocess.DEVNULL
        with open(f"{self.base}/out", "w+") as out:
            words = [*program, "create", "--bundle", self.base, "x"]
            made = subprocess.run(words, stdin=null, stdout=out, stderr=out, timeout=60, check=False, umask=0o022)
            try:
                if made.returncode == 0:
                    files = self.limits()
                    subprocess.run(
                        [*program, "start", "x"], stdin=null, stdout=out, stderr=out, timeout=60, check=False
                    )
                    self.wait(program)
            finally:
                subprocess.run([*program, "delete", "--force", "x"], capture_output=True, timeout=60, check=False)
            out.seek(0)
            text = out.read()
        assert made.returncode == 0, f"{which}: {text}\n{json.dumps(config)}"
        seen: dict[str, list[str]] = {"limits": files}
        for line in text.splitlines():
            what, tab, item = line.partition("\t")
            assert tab, f"{which}: {text}"
            seen.setdefault(what, []).append(item)
        return seen

    def see_exec(self, which: str, config: dict[str, Any], process: dict[str, Any]) -> dict[str, list[str]]:
        """What a further process tells of a container that waits."""
        self.root(100000 if config["linux"].get("uidMappings") else 0, accounts=True)
        config = {**config, "process": {**config["process"], "args": ["probe", "wait"]}}
        for name, content in (("config", config), ("process", process)):
            with open(f"{self.base}/{name}.json", "w") as file:
                json.dump(content, file)
        program, null = self.programs[which], subprocess.DEVNULL
        with open(f"{self.base}/out", "w+") as out:
            words = [*program, "run", "--detach", "--bundle", self.base, "x"]
            made = subprocess.run(words, stdin=null, stdout=out, stderr=out, timeout=60, check=False, umask=0o022)
            words = [*program, "exec", "--process", f"{self.base}/process.json", "x"]
            done = subprocess.run(
                words, stdin=null, capture_output=True, text=True, timeout=60, check=False, umask=0o022
            )
            subprocess.run([*program, "delete", "--force", "x"], capture_output=True, timeout=60, check=False)
            out.seek(0)
            assert made.returncode == done.returncode == 0, f"{which}: {out.read()}{done.stderr}\n{json.dumps(config)}"
        seen: dict[str, list[str]] = {"limits": []}
        for line in done.stdout.splitlines():
            what, _, item = line.partition("\t")
            seen.setdefault(what, []).append(item)
        return seen

    def wait(self, program: list[str]) -> None:
        for _ in range(2000):
            state = json.loads(subprocess.run([*program, "state", "x"], capture_output=True, check=True).stdout)
            if state["status"] == "stopped":
                return
        raise AssertionError("the probe does not end")

    def limits(self) -> list[str]:
        """The files of the cgroup that hold what a bundle can limit."""
        found = []
        for file in (
            "memory/memory.limit_in_bytes", "memory/memory.soft_limit_in_bytes", "memory/memory.memsw.limit_in_bytes",
            "cpu/cpu.shares", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "pids/pids.max", "devices/devices.list",
        ):  # fmt: skip
            group, name = file.split("/")
            path = f"/sys/fs/cgroup/{group}{self.cgroup}/{name}"
            if os.path.exists(path):
                with open(path) as reading:
                    found += sorted(f"{file} {line.strip()}" for line in reading)
        return found


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    peers.need_root()
    peers.need("runc", "gcc")
    base = tempfile.mkdtemp(prefix="mamushka-differential-")
    os.chmod(base, 0o755)  # a mapped root looks from outside, where pytest's own directories are closed
    made = Ground(base, f"mamushka-test-{os.getpid()}")
    source = os.path.join(os.path.dirname(__file__), "probe.c")
    peers.run("gcc", "-static", "-O1", "-o", f"{base}/probe", source)
    yield made
    shutil.rmtree(base)
    for hierarchy in os.listdir("/sys/fs/cgroup"):
        try:
            os.rmdir(f"/sys/fs/cgroup/{hierarchy}{made.cgroup}")
        except OSError:
            continue


# Comparing

# glibc keeps two signals for itself, and leaves them ignored in what its posix_spawn starts: runc hands that on.
_GLIBC_SIGNALS = 1 << 31 | 1 << 32


def _own(name: str, words: list[str]) -> list[str]:
    return [f"{int(words[0], 16) & ~_GLIBC_SIGNALS:016x}"] if name == "SigIgn" else words


# Lines of /proc/self/status that say what a process may do; the rest is how it fares.
STATUS = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff",
          "CapBnd", "CapAmb", "Cpus_allowed_list", "THP_enabled", "CoreDumping")  # fmt: skip


def normal(seen: dict[str, list[str]], base: str, config: dict[str, Any], *, accounts: bool) -> dict[str, Any]:
    """The fields that are compared, each as a value that prints well."""
    status = dict(line.split(":", 1) for line in seen["status"])
    host = {
        kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("cgroup", "ipc", "net", "pid", "user", "uts", "time")
    }
    spaces = dict(line.split() for line in seen["namespace"])
    mapped = bool(config["linux"].get("uidMappings"))
    found: dict[str, Any] = {
        "status": {name: _own(name, status[name].split()) for name in STATUS if name in status},
        "mounts": mounts(seen["mount"], base, config),
        "namespaces": {kind: "shared" if spaces[kind] == host[kind] else "new" for kind in host},
        "keyring": re.sub(r";[0-9a-f]+;_\w+\.", ";_.", re.sub(r"3f1b0000;_\w+\.", "_.", seen["keyring"][0])),
        "devices": sorted(line for line in seen["device"] if not (mapped and line.startswith("/dev/mqueue "))),
        "env": sorted(line for line in seen["env"] if accounts or not line.startswith("HOME=")),
        "limits": [line for line in seen["limits"] if not re.search(r" c (10:200 rwm|5:1 rwm)$", line)],
    }
    for what, lines in seen.items():
        if what not in (*found, "mount", "namespace", "device", "cgroup"):
            found[what] = lines
    return found


def mounts(lines: list[str], base: str, config: dict[str, Any]) -> list[str]:
    """The mounts as they are for whoever uses them, the topmost of each place."""
    masked, readonly = config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]
    found = {}
    for line in lines:
        left, _, right = line.partition(" - ")
        _, _, _, root, where, options, *fields = left.split()
        kind, _, superblock = right.split(" ", 2)
        tags = sorted({field.split(":")[0] for field in fields})
        # Without what is only this boot's; of the host's filesystems, and of sysfs, nothing.
        shown = [] if kind in ("ext4", "overlay", "xfs", "btrfs", "sysfs") else sorted(superblock.split(","))
        if kind == "tmpfs" and where in masked:
            options, shown = "masked", []
        if any(where.startswith(f"{path}/") for path in readonly):
            options = options.removeprefix("ro").removeprefix("rw")
        root = "inside" if root != "/" and kind in ("tmpfs", "proc", "devpts") else root.replace(base, "")
        found[where] = " ".join([where, kind, root, options, *tags, *shown])
    return sorted(found.values())


def executable(process: dict[str, Any]) -> dict[str, Any]:
    """A process for exec, which finds its directory or fails, with nothing that runc 1.1 passes over."""
    process["user"].pop("umask", None)
    process.pop("oomScoreAdj", None)
    for limit in process["rlimits"]:
        if limit["type"] == "RLIMIT_NOFILE":
            limit["soft"] = limit["hard"]
    return {**process, "cwd": process["cwd"].replace("/made/here", "/data/..")}


def compare(ground: Ground, config: dict[str, Any], process: dict[str, Any] | None, *, accounts: bool) -> None:
    """Run it, or execute the process in it, by both."""
    config["linux"]["cgroupsPath"] = ground.cgroup
    paths = [
        *config["linux"]["maskedPaths"],
        *config["linux"]["readonlyPaths"],
        "/data/file",
        "/data/directory",
        "/tmp",
    ]
    sysctls = ["/proc/sys/" + name.replace(".", "/") for name in config["linux"]["sysctl"]]
    (process or config["process"])["args"] = ["probe", *sorted({*paths, *sysctls})]
    found = []
    for which in ("ours", "runc"):
        seen = ground.see_exec(which, config, process) if process else ground.see(which, config, accounts=accounts)
        found.append(normal(seen, ground.base, config, accounts=accounts))
    ours, theirs = found
    for what in sorted(ours.keys() | theirs.keys()):
        assert ours.get(what) == theirs.get(what), f"{what}\n{json.dumps(process)}\n{json.dumps(config)}"


thorough = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


@thorough
@given(data=st.data())
def test_a_random_bundle_is_the_same_as_runcs(ground: Ground, data: st.DataObject) -> None:
    compare(ground, data.draw(configs(ground.base)), None, accounts=data.draw(st.booleans()))


@thorough
@given(data=st.data())
def test_a_random_exec_is_the_same_as_runcs(ground: Ground, data: st.DataObject) -> None:
    compare(ground, data.draw(configs(ground.base)), executable(data.draw(processes())), accounts=True)


def test_a_propagation_of_its_own_outlives_the_roots(ground: Ground) -> None:
    """Which the draws above found."""
    mounted = {"destination": "/deep/0", "type": "bind", "source": f"{ground.base}/shared", "options": ["bind"]}
    mounted["options"].append("unbindable")
    config = {
        "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": False}, "mounts": [*base(False), mounted],
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "rlimits": [],
                    "capabilities": {}, "noNewPrivileges": True},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}], "maskedPaths": [], "readonlyPaths": [],
                  "sysctl": {}, "rootfsPropagation": "rprivate", "resources": {}},
    }  # fmt: skip
    compare(ground, config, None, accounts=True)
    seen = ground.see("ours", config)
    assert any(" /deep/0 " in line and "unbindable" in line for line in seen["mount"])
