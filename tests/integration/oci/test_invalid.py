"""Bundles that cannot be: an error that says why, and nothing on the host that was not there before."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.oci.conftest import Oci

pytestmark = pytest.mark.root

GONE = object()
MOUNT = {"type": "mount"}
IDS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
TMPFS = {"destination": "/x", "type": "tmpfs", "source": "t"}


def case(path: str, item: Any, message: str, **more: Any) -> Any:
    """The bundle with one place of its config changed, and what is said then; ``more`` are further places."""
    changes = {path: item, **{key.replace("__", "."): value for key, value in more.items()}}
    shown = "absent" if item is GONE else json.dumps(item)[:40]
    return pytest.param(changes, message, id=f"{path}={shown}")


CASES = [
    # versions and types
    case("ociVersion", GONE, "ociVersion"),
    case("ociVersion", "2.0.0", "version '2.0.0'"),
    case("ociVersion", "0.9.0", "version '0.9.0'"),
    case("ociVersion", "1.x", "version '1.x'"),
    case("ociVersion", 1, "ociVersion"),
    case("process", [], "process"),
    case("process.args", "sh", "args"),
    case("process.args", [1], "args"),
    case("process.user.uid", -1, "uid"),
    case("process.user.uid", 1 << 32, "uid"),
    case("process.user.umask", "022", "umask"),
    case("process.terminal", "no", "terminal"),
    case("process.noNewPrivileges", 1, "noNewPrivileges"),
    case("process.oomScoreAdj", 1.5, "oomScoreAdj"),
    case("hostname", {}, "hostname"),
    case("mounts", {}, "mounts"),
    case("mounts", [{"type": "tmpfs"}], "destination"),
    case("hooks", {"poststop": "x"}, "poststop"),
    case("annotations", {"a": 1}, "annotations"),
    case("linux.resources.memory", {"limit": "1G"}, "limit"),
    case("linux.namespaces", ["pid"], "namespaces"),
    case("linux.sysctl", {"net.ipv4.ip_forward": 1}, "sysctl"),
    # the root and the process
    case("root", GONE, "has no root"),
    case("root.path", "nowhere", "nowhere does not exist"),
    case("root.path", "/nowhere/at/all", "does not exist"),
    case("root.path", "config.json", "config.json"),
    case("process", GONE, "no process"),
    case("process.args", [], "no program"),
    case("process.args", [""], "no program"),
    case("process.args", ["/no/such"], "/no/such"),
    case("process.cwd", "relative", "not an absolute path"),
    case("process.cwd", "/bin/busybox", "chdir to cwd"),
    case("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], "RLIMIT_X"),
    case("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}], "above the hard"),
    case("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2, "twice"),
    case("process.oomScoreAdj", 100000, "oom_score_adj"),
    case("process.scheduler", {"policy": "SCHED_MOOD"}, "SCHED_MOOD"),
    case("process.ioPriority", {"class": "IOPRIO_CLASS_X", "priority": 0}, "IOPRIO_CLASS_X"),
    # paths that escape
    case("linux.cgroupsPath", "../../escaped", "'..'"),
    case("linux.cgroupsPath", "/", "hierarchy itself"),
    case("linux.sysctl", {"net/../kernel/panic": "1"}, "sysctl"),
    case("linux.sysctl", {"kernel.panic": "1"}, "would change the host"),
    case("linux.resources", {"unified": {"../memory.max": "1"}}, "unified"),
    case("linux.resources", {"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, "huge page"),
    case("linux.intelRdt", {"closID": "../x"}, "resctrl"),
    case("linux.netDevices", {"nowhere0": {}}, "nowhere0"),
    case("linux.netDevices", {"../lo": {}}, "'../lo'"),
    # mounts
    case("mounts", [{"destination": "/x", "source": "a"}], "neither a type nor"),
    case("mounts", [{**TMPFS, "destination": ""}], "empty destination"),
    case("mounts", [{**TMPFS, "type": "nosuchfs"}], "nosuchfs"),
    case("mounts", [{**TMPFS, "options": ["size=many"]}], "size"),
    case("mounts", [{**TMPFS, "options": ["nosuchword"]}], "nosuchword"),
    case("mounts", [{"destination": "/x", "source": "/nowhere", "options": ["bind"]}], "/nowhere"),
    case("mounts", [{"destination": "/x", "source": "/tmp", "options": ["bind", "uid=3"]}], "uid=3"),
    case("mounts", [{"destination": "/x", "source": "/tmp", "options": ["bind", "idmap"]}], "map ids"),
    case("mounts", [{"destination": "/bin/busybox/x", **{k: TMPFS[k] for k in ("type", "source")}}], "busybox"),
    case("linux.rootfsPropagation", "sideways", "sideways"),
    # namespaces and ids
    case("linux.namespaces", [], "mount namespace"),
    case("linux.namespaces", [MOUNT, MOUNT], "twice"),
    case("linux.namespaces", [MOUNT, {"type": "moon"}], "moon", hostname=""),
    case("linux.namespaces", [MOUNT, {"type": "pid", "path": "/nowhere"}], "/nowhere", hostname=""),
    case("linux.namespaces", [MOUNT, {"type": "pid", "path": "/etc/passwd"}], "no namespace of that type"),
    case("linux.namespaces", [MOUNT, {"type": "pid", "path": "relative"}], "not absolute"),
    case("linux.namespaces", [MOUNT], "host name", hostname="x"),
    case("linux.namespaces", [MOUNT, {"type": "user"}], "uidMappings", hostname=""),
    case("linux.uidMappings", IDS, "without a user namespace"),
    case(
        "linux.namespaces", [MOUNT, {"type": "user"}], "uid_map", hostname="", linux__gidMappings=IDS,
        linux__uidMappings=[{"containerID": 0, "hostID": 0, "size": 0}],
    ),
    case(
        "linux.namespaces", [MOUNT, {"type": "user"}], "uid_map", hostname="", linux__gidMappings=IDS,
        linux__uidMappings=[*IDS, {"containerID": 5, "hostID": 300000, "size": 5}],
    ),
    case(
        "linux.namespaces", [MOUNT, {"type": "user"}], "uid_map", hostname="", linux__gidMappings=IDS,
        linux__uidMappings=[{"containerID": n, "hostID": 100000 + n, "size": 1} for n in range(400)],
    ),
    case("linux.timeOffsets", {"monotonic": {"secs": 1}}, "time namespace"),
    case(
        "linux.namespaces", [MOUNT, {"type": "time"}], "clock", hostname="",
        linux__timeOffsets={"realtime": {"secs": 1}},
    ),
    # devices, filters, the rest
    case("linux.devices", [{"path": "/dev/x", "type": "x", "major": 1, "minor": 1}], "types are"),
    case("linux.devices", [{"path": "/bin/busybox", "type": "c", "major": 1, "minor": 3}], "busybox"),
    case("linux.seccomp", {"defaultAction": "SCMP_ACT_X"}, "SCMP_ACT_X"),
    case("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, "'X'"),
    case("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["X"]}, "'X'"),
    case("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}, "listenerPath"),
    case(
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere",
         "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]},
        "no socket at /nowhere",
    ),
    case("linux.personality", {"domain": "LINUX64"}, "LINUX64"),
    case("linux.memoryPolicy", {"mode": "MPOL_X"}, "MPOL_X"),
    case("linux.memoryPolicy", {"mode": "MPOL_BIND", "nodes": "1000"}, "set_mempolicy"),
    case("hooks", {"createRuntime": [{"path": "relative"}]}, "not an absolute path"),
    case("hooks", {"createRuntime": [{"path": "/bin/true", "timeout": 0}]}, "timeout"),
    case("hooks", {"createRuntime": [{"path": "/no/such/hook"}]}, "/no/such/hook"),
    # controllers that no host has, and values that none takes
    case("linux.resources", {"unified": {"nosuch.max": "1"}}, "nosuch"),
    case("linux.resources", {"memory": {"limit": 1 << 20, "swap": 1 << 19}}, "swap"),
    case("linux.resources", {"blockIO": {"weight": 5}}, "weight"),
    case("linux.resources", {"rdma": {"mlx5_0": {}}}, "say nothing"),
    case("linux.resources", {"rdma": {"mlx5_0": {"hcaHandles": 1}}}, "rdma"),
    case("linux.resources", {"cpu": {"cpus": "1000-2000"}}, "cpuset.cpus"),
    case("linux.resources", {"devices": [{"allow": True, "type": "x", "access": "r"}]}, "device rule"),
]  # fmt: skip


def change(config: dict[str, Any], path: str, item: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        if not isinstance(config.setdefault(name, {}), dict):
            return
        config = config[name]
    if item is GONE:
        config.pop(last, None)
    else:
        config[last] = item


def left(oci: Oci, name: str) -> tuple[list[str], list[str], str]:
    """Records, cgroups by that name, and mounts."""
    records = os.listdir(oci.state) if os.path.exists(oci.state) else []
    cgroups = [path for depth in ("*", "*/*") for path in glob.glob(f"/sys/fs/cgroup/{depth}/{name}*")]
    return records, cgroups, Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_nothing_is_left_of_a_bundle_that_cannot_be(
    oci: Oci,
    unique: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    path = f"{oci.bundle}/config.json"
    config = json.loads(Path(path).read_text())
    change(config, "linux.cgroupsPath", f"/{unique}")
    for place, item in changes.items():
        change(config, place, item)
    Path(path).write_text(json.dumps(config))
    before = left(oci, unique)
    for verb in ("create", "run"):
        done = oci(verb, unique)
        assert done.returncode in (1, 126, 127), (verb, done.stdout, done.stderr)
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert left(oci, unique) == before == ([], [], before[2]), verb
    assert not glob.glob("/sys/fs/cgroup/*/escaped")


def test_unknown_capabilities_are_a_warning(oci: Oci, unique: str, tmp_path: Path) -> None:
    """config.md#linux-process: a line in the log, and on without them."""
    path = Path(f"{oci.bundle}/config.json")
    config = json.loads(path.read_text())
    config["process"]["capabilities"]["bounding"] += ["CAP_FLY", "CAP_SWIM"]
    config["process"]["args"] = ["echo", "on"]
    change(config, "linux.cgroupsPath", f"/{unique}")
    path.write_text(json.dumps(config))
    log = tmp_path / "log"
    done = oci("--log", str(log), "--log-format", "json", "run", unique)
    assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    warnings = [line["msg"] for line in lines if line["level"] == "warning" and "unknown capability" in line["msg"]]
    assert warnings == [f"ignoring the unknown capability {name}" for name in ("CAP_FLY", "CAP_SWIM")]
