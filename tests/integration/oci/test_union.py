"""What runc's and crun's callers rely on beyond a container's life: logs, events, exec's cgroup, mounts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.container.cgroups.layout import UNIFIED, layout
from tests import peers
from tests.integration.oci.conftest import PROGRAM, Oci

pytestmark = [pytest.mark.root, pytest.mark.lab]


def place(oci: Oci, path: str, **linux: Any) -> None:
    """Choose the container's cgroup, and other settings."""
    name = f"{oci.bundle}/config.json"
    with open(name) as file:
        config = json.load(file)
    config["linux"].update({"cgroupsPath": path, **linux})
    with open(name, "w") as file:
        json.dump(config, file)


@pytest.fixture
def cgroup(oci: Oci, unique: str) -> Iterator[str]:
    """The path of a cgroup for the bundle's container ``x``, which is removed with what is below."""
    place(oci, f"/{unique}")
    yield f"/{unique}"
    oci("delete", "--force", "x")


# Logs


def heard(oci: Oci, where: str, tmp_path: Any, destination: str) -> bytes:
    """What a failing command says to a daemon that listens at ``where``, in a /run and /dev of its own."""
    script = f"""
import os, socket, subprocess
os.makedirs(os.path.dirname({where!r}), exist_ok=True)
daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
daemon.bind({where!r})
daemon.settimeout(20)
subprocess.run([{PROGRAM!r}, "--log", {destination!r}, "state", "nobody"], stderr=subprocess.DEVNULL)
os.write(1, daemon.recv(9999))
"""
    directory = "/" + where.split("/")[1]
    command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {directory}; exec "$@"', "sh"]
    if directory == "/dev":  # the interpreter needs what is there
        command = ["unshare", "--mount"]
        script = script.replace("daemon.bind", "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/dev']);daemon.bind")
        script = script.replace("stderr=subprocess.DEVNULL", "stderr=subprocess.PIPE")
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_journal_hears(oci: Oci, tmp_path: Any) -> None:
    packet = heard(oci, "/run/systemd/journal/socket", tmp_path, "journald:ours")
    assert packet.startswith(b"PRIORITY=3\nSYSLOG_IDENTIFIER=ours\nMESSAGE\n")
    text = packet.partition(b"MESSAGE\n")[2]
    assert int.from_bytes(text[:8], "little") == len(text) - 9 and b"container does not exist" in text


def test_syslog_hears(oci: Oci, tmp_path: Any) -> None:
    packet = heard(oci, "/dev/log", tmp_path, "syslog:ours")
    assert packet.startswith(b"<11>ours[") and b"]: container does not exist" in packet


def test_a_log_file_and_levels(oci: Oci, tmp_path: Any) -> None:
    log = tmp_path / "log"
    words = ("--log", f"file:{log}", "--log-format", "json")
    assert oci(*words, "--log-level", "error", "state", "nobody").returncode == 1
    assert [json.loads(line)["level"] for line in log.read_text().splitlines()] == ["error"]
    assert oci(*words, "--log-level", "debug", "run", "x").returncode == 0
    levels = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"debug", "error"} == {line["level"] for line in levels}
    assert all(line.keys() == {"level", "msg", "time"} for line in levels)
    for wrong in (("--log-level", "loud"), ("--log-format", "xml")):
        assert "is one of" in oci(*wrong, "list").stderr


def test_what_is_passed_over_is_told(oci: Oci, tmp_path: Any) -> None:
    oci.edit("true", capabilities={"bounding": ["CAP_KILL", "CAP_TO_FLY"]})
    log = tmp_path / "log"
    assert oci("--log", str(log), "run", "x").returncode == 0
    assert 'level=warning msg="ignoring the unknown capability CAP_TO_FLY"' in log.read_text()
    log.unlink()
    assert oci("--log", str(log), "--log-level", "error", "run", "x").returncode == 0
    assert log.read_text() == ""


# events


def shape(item: Any) -> Any:
    """A document's keys and kinds; what is counted is forgotten."""
    if isinstance(item, dict):
        return {key: shape(entry) for key, entry in item.items()}
    if isinstance(item, list):
        return [shape(entry) for entry in item[:1]]
    return type(item).__name__


@pytest.mark.peer
def test_stats_have_runcs_shape(oci: Oci, cgroup: str, tmp_path: Any) -> None:
    peers.need("runc")
    oci.edit("sleep", "60", capabilities={})
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 30}, "cpu": {"quota": 50000, "period": 100000}}
    found = []
    for runtime in (oci, Oci(str(tmp_path / "runc"), oci.bundle, peers.find("runc"))):
        place(oci, f"{cgroup}", resources=limits)
        assert runtime.quietly("run", "-d", "x") == 0
        time.sleep(0.2)
        done = runtime("events", "--stats", "x")
        assert runtime("delete", "--force", "x").returncode == 0
        document = json.loads(done.stdout)
        for group in ("cpu", "memory", "blkio"):
            document["data"][group].pop("psi", None)  # of later versions
        document["data"]["memory"].pop("cache", None)  # where there is some
        for group, amount in document["data"]["memory"].items():
            if group != "raw":
                amount.pop("usage", None), amount.pop("max", None)
        for name in ("periods", "throttledPeriods", "throttledTime"):
            document["data"]["cpu"]["throttling"].pop(name, None)
        document["data"]["blkio"] = {}  # what was read, who knows
        if "hugetlb" not in layout().v1:  # runc looks for it in v1 alone
            document["data"]["hugetlb"] = {}
        found.append(document)
    ours, theirs = found
    for name in ("cpus", "mems"):
        if name not in theirs["data"]["cpuset"]:  # on cgroup v2 it tells neither
            ours["data"]["cpuset"].pop(name, None)
    for name in theirs["data"]:
        assert shape(ours["data"][name]) == shape(theirs["data"][name])
    assert ours.keys() == theirs.keys()
    assert ours["data"]["pids"] == theirs["data"]["pids"] == {"current": 1, "limit": 30}
    assert ours["data"]["memory"]["usage"] == theirs["data"]["memory"]["usage"]
    assert ours["data"]["cpuset"] == theirs["data"]["cpuset"]


def test_events_come_at_intervals_and_end_with_the_container(oci: Oci, cgroup: str) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    command = [PROGRAM, "--root", oci.state, "events", "--interval", "100ms", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        for _ in range(3):
            line = json.loads(listening.stdout.readline())
            assert line["type"] == "stats" and line["id"] == "x" and line["data"]["pids"]["current"] == 1
        assert oci("kill", "x", "KILL").returncode == 0
        assert listening.wait(20) == 0
    for wrong in ("fast", "1x", "-1s", "0"):
        assert oci("events", "--interval", wrong, "x").returncode == 1


@pytest.mark.skipif("memory" not in {*layout().v1, *layout().controllers}, reason="no controller counts memory")
def test_a_kill_for_want_of_memory_is_an_event(oci: Oci, cgroup: str) -> None:
    swallow = "read go </fifo; s=0123456789abcdef; while true; do s=$s$s; done"
    os.mkfifo(f"{oci.bundle}/rootfs/fifo")
    oci.edit("sh", "-c", f"(sh -c '{swallow}'); sleep 60")
    place(oci, cgroup, resources={"memory": {"limit": 16 << 20, "swap": 16 << 20}})
    assert oci.quietly("run", "-d", "x") == 0
    command = [PROGRAM, "--root", oci.state, "events", "--interval", "1h", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        time.sleep(0.5)
        with open(f"{oci.bundle}/rootfs/fifo", "w") as gate:
            gate.write("go\n")
        assert json.loads(listening.stdout.readline()) == {"type": "oom", "id": "x"}
        assert json.loads(oci("state", "x").stdout)["status"] == "running"
        oci("delete", "--force", "x")
        listening.wait(20)


# exec --cgroup


def tree(cgroup: str) -> str:
    """A hierarchy in which every container is: its name for --cgroup's controller, and its directory."""
    found = layout()
    return (found.unified if found.unified else found.v1["memory"]) + cgroup


def test_exec_goes_below_the_containers_cgroup_and_nowhere_else(oci: Oci, cgroup: str) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    found = layout()
    own = [where + cgroup for where in {found.unified, *found.v1.values()} if where and os.path.isdir(where + cgroup)]
    assert "does not exist" in oci("exec", "--cgroup", "/below", "x", "true").stderr
    for directory in own:
        os.mkdir(f"{directory}/below")
    done = oci("exec", "--cgroup", "/below", "x", "cat", "/proc/self/cgroup")
    assert done.returncode == 0, done.stderr
    host = oci("exec", "x", "cat", "/proc/self/cgroup").stdout
    assert done.stdout.count("/below\n") >= len(own)
    assert done.stdout.replace("/below\n", "\n").replace(":\n", ":/\n") == host
    for outside in ("..", "/..", "below/../..", "/../" + os.path.basename(cgroup), "memory:..", "memory:below/../.."):
        refused = oci("exec", "--cgroup", outside, "x", "true")
        assert refused.returncode == 1, outside
        assert "not a sub cgroup path" in refused.stderr or "no hierarchy" in refused.stderr
    assert "no hierarchy" in oci("exec", "--cgroup", "flying:/", "x", "true").stderr
    if "memory" in found.v1:
        text = oci("exec", "--cgroup", "memory:below", "x", "cat", "/proc/self/cgroup").stdout
        assert [line for line in text.splitlines() if line.endswith("/below")] and text.count("/below") == 1


def test_exec_follows_into_a_cgroup_that_hands_controllers_down(oci: Oci, cgroup: str) -> None:
    """As with a systemd or a dockerd inside on cgroup v2, whose own cgroup then takes no process."""
    found = layout()
    if not found.controllers:
        pytest.skip("the cgroup2 tree has no controller to hand down")
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    pid = json.loads(oci("state", "x").stdout)["pid"]
    directory = found.unified + cgroup
    os.mkdir(f"{directory}/init")
    with open(f"{directory}/init/cgroup.procs", "w") as file:
        file.write(str(pid))
    root = f"{found.unified}/cgroup.subtree_control"
    added = _hand_down(root, found.controllers[0])
    try:
        _hand_down(f"{directory}/cgroup.subtree_control", found.controllers[0])
        done = oci("exec", "x", "cat", "/proc/self/cgroup")
        assert done.returncode == 0, done.stderr
        assert any(line.startswith("0::") and line.endswith("/init") for line in done.stdout.splitlines())
    finally:
        oci("delete", "--force", "x")
        if added:
            with open(root, "w") as file:
                file.write(f"-{found.controllers[0]}")


def _hand_down(path: str, controller: str) -> bool:
    with open(path) as file:
        if controller in file.read().split():
            return False
    with open(path, "w") as file:
        file.write(f"+{controller}")
    return True


# exec takes nothing of the caller


def test_exec_is_as_likely_to_be_killed_as_the_container(oci: Oci) -> None:
    """And not as the caller, who may be exempt: containerd's shim runs with -998."""
    oci.edit("sleep", "60", oomScoreAdj=300)
    assert oci.quietly("run", "-d", "x") == 0
    text = subprocess.run(
        ["sh", "-c", 'echo 900 > /proc/self/oom_score_adj; exec "$@"', "sh", PROGRAM, "--root", oci.state, "exec", "x",
         "cat", "/proc/self/oom_score_adj"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert text.stdout == "300\n", text.stderr


def test_exec_enters_a_directory_that_is_there_and_makes_none(oci: Oci) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    done = oci("exec", "--cwd", "/not/here", "x", "true")
    assert 'chdir to cwd ("/not/here")' in done.stderr and "no such file or directory" in done.stderr.lower()
    assert not os.path.exists(f"{oci.bundle}/rootfs/not")


# mounts


def test_mounts_come_and_go(oci: Oci, tmp_path: Any) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    (tmp_path / "shared").write_text("of the host")
    (tmp_path / "directory").mkdir()
    listed = [
        {"destination": "/late/file", "source": str(tmp_path / "shared"), "options": ["bind", "ro"]},
        {"destination": "/late/directory", "source": str(tmp_path / "directory"), "options": ["rbind"]},
        {"destination": "/late/memory", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "nosuid"]},
    ]
    path = tmp_path / "mounts.json"
    path.write_text(json.dumps(listed))
    done = oci("mounts", "add", "x", str(path))
    assert done.returncode == 0, done.stderr
    assert oci("exec", "x", "cat", "/late/file").stdout == "of the host"
    assert oci("exec", "x", "sh", "-c", "echo x > /late/file").returncode != 0
    assert oci("exec", "x", "sh", "-c", "echo x > /late/directory/y").returncode == 0
    assert (tmp_path / "directory" / "y").exists()
    mounted = oci("exec", "x", "cat", "/proc/mounts").stdout
    assert "/late/memory tmpfs rw,nosuid" in mounted
    assert oci("mounts", "remove", "x", str(path)).returncode == 0
    assert "/late" not in oci("exec", "x", "cat", "/proc/mounts").stdout
    assert "umount" in oci("mounts", "remove", "x", str(path)).stderr
    listed[0]["source"] = str(tmp_path / "nothing")
    path.write_text(json.dumps(listed))
    assert "no such file" in oci("mounts", "add", "x", str(path)).stderr
    path.write_text('{"destination": "/"}')
    assert "is not a list" in oci("mounts", "add", "x", str(path)).stderr
    assert "add or remove" in oci("mounts", "move", "x", str(path)).stderr


def test_a_late_mount_stays_inside_whatever_links_lie_there(oci: Oci, tmp_path: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(str(outside), f"{oci.bundle}/rootfs/trap")
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    path = tmp_path / "mounts.json"
    path.write_text(json.dumps([{"destination": "/trap/in", "type": "tmpfs", "source": "tmpfs"}]))
    assert oci("mounts", "add", "x", str(path)).returncode in (0, 1)
    assert list(outside.iterdir()) == []


# run, kill, delete, update, list, ps, spec


def test_a_container_is_kept_if_asked_and_its_config_may_have_another_name(oci: Oci) -> None:
    os.rename(f"{oci.bundle}/config.json", f"{oci.bundle}/other.json")
    assert oci("run", "--config", "other.json", "gone").returncode == 0
    assert oci("run", "-f", f"{oci.bundle}/other.json", "--keep", "x").returncode == 0
    assert oci("list", "-q").stdout == "x\n"
    assert json.loads(oci("state", "x").stdout)["status"] == "stopped"
    assert oci("delete", "x").returncode == 0


def test_many_are_killed_and_deleted_by_a_pattern(oci: Oci) -> None:
    oci.edit("sleep", "60")
    for name in ("web-1", "web-2", "db"):
        assert oci.quietly("run", "-d", name) == 0
    assert oci("kill", "--regex", "^web-", "KILL").returncode == 0
    for _ in range(200):
        listed = {item["id"]: item["status"] for item in json.loads(oci("list", "-f", "json").stdout)}
        if list(listed.values()).count("stopped") == 2:
            break
        time.sleep(0.02)
    assert listed == {"web-1": "stopped", "web-2": "stopped", "db": "running"}
    assert oci("delete", "--force", "--regex", "web|db").returncode == 0
    assert oci("list", "-q").stdout == ""
    assert "no regular expression" in oci("delete", "--regex", "(").stderr


def test_all_are_killed_where_the_first_is_not_the_only_one(oci: Oci) -> None:
    os.mkfifo(f"{oci.bundle}/rootfs/fifo")
    oci.edit("sh", "-c", "trap : TERM; sleep 60 & wait; wait; while :; do read x </fifo; done")
    assert oci.quietly("run", "-d", "x") == 0
    time.sleep(0.3)
    before = json.loads(oci("ps", "-f", "json", "x").stdout)
    assert oci("kill", "--all", "x", "TERM").returncode == 0
    time.sleep(0.3)
    after = json.loads(oci("ps", "-f", "json", "x").stdout)
    assert len(before) == 2 and before[0] in after and before[1] not in after


def test_exec_gives_what_it_is_asked_to_give(oci: Oci) -> None:
    oci.edit("sleep", "60", noNewPrivileges=False)
    assert oci.quietly("run", "-d", "x") == 0
    words = ("--cap", "CAP_CHOWN", "-c", "sys_chroot", "--no-new-privs", "-g", "50,51", "-u", "0:9", "-e", "A=b c")
    status = oci("exec", *words, "x", "sh", "-c", "echo $A; cat /proc/self/status").stdout
    assert status.startswith("b c\n") and "NoNewPrivs:\t1" in status and "Groups:\t50 51" in status
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    assert effective & 1 << 0 and effective & 1 << 18  # capabilities(7): CHOWN, SYS_CHROOT
    plain = oci("exec", "x", "cat", "/proc/self/status").stdout
    assert "NoNewPrivs:\t0" in plain
    if not os.path.exists("/sys/kernel/security/apparmor"):
        assert "AppArmor is not enabled" in oci("exec", "--apparmor", "strict", "x", "true").stderr


def test_update_takes_every_limit(oci: Oci, cgroup: str, tmp_path: Any) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    log = tmp_path / "log"
    words = ("--cpu-period", "50000", "--cpu-quota", "25000", "--cpu-share", "512", "--memory-reservation", "32m")
    words += ("--cpuset-cpus", "0", "--cpuset-mems", "0", "--memory", "64m")
    done = oci("--log", str(log), "update", *words, "x")
    assert done.returncode == 0, done.stderr
    done = oci("--log", str(log), "update", "--kernel-memory", "1g", "x")
    assert done.returncode == 1 and "kernel" in done.stderr and "hint" in done.stderr
    data = json.loads(oci("events", "--stats", "x").stdout)["data"]
    assert data["memory"]["usage"]["limit"] == 64 << 20 and data["cpuset"]["cpus"] == [0]
    status = oci("exec", "x", "cat", "/proc/self/status").stdout
    assert "Cpus_allowed_list:\t0\n" in status
    if layout().kind != UNIFIED:
        directory = layout().v1["cpu"] + cgroup
        for file, text in (("cpu.cfs_quota_us", "25000"), ("cpu.cfs_period_us", "50000"), ("cpu.shares", "512")):
            with open(f"{directory}/{file}") as read:
                assert read.read().strip() == text
    assert "Intel RDT" in oci("update", "--l3-cache-schema", "L3:0=f", "x").stderr


def test_lists_and_processes_of_the_stopped(oci: Oci) -> None:
    oci.edit("true")
    assert oci.quietly("run", "-d", "x") == 0
    for _ in range(200):
        if json.loads(oci("state", "x").stdout)["status"] == "stopped":
            break
        time.sleep(0.02)
    assert json.loads(oci("ps", "--format", "json", "x").stdout) == []
    [listed] = json.loads(oci("list", "-f", "json").stdout)
    assert listed["owner"] == "root" and listed["status"] == "stopped" and listed["pid"] == 0
    assert "table or json" in oci("list", "-f", "xml").stderr


def test_spec_writes_where_it_is_told(oci: Oci) -> None:
    assert oci("spec", "--rootless", "-f", "other.json").returncode == 0
    with open(f"{oci.bundle}/other.json") as file:
        config = json.load(file)
    assert {"type": "user"} in config["linux"]["namespaces"] and config["linux"]["uidMappings"]
    assert oci("spec", "-f", "other.json").returncode == 1


def test_the_pidfd_is_handed_out(oci: Oci, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    oci.edit("sleep", "60")
    for words in (("run", "-d", "x"), ("exec", "-d", "x", "sleep", "9")):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            assert oci.quietly(words[0], "--pidfd-socket", path, *words[1:]) == 0
            line, _ = server.accept()
            with line:
                _, [descriptor], _, _ = socket.recv_fds(line, 100, 1)
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            assert "Pid:" in file.read()
        os.close(descriptor)
        os.unlink(path)
