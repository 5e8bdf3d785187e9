"""podman, docker and containerd with machines: each is given the other wall by the means that it has.

A machine takes some ten seconds under emulation, so a test does all that one machine can show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.dockerd import dockerd
from tests.integration.machine.linux_guest import KERNEL, busybox_root, need_machines

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.peer, pytest.mark.slow]
OURS = os.path.dirname(sys.executable)
PROGRAMS = "sh echo sleep tty id cat true env ip ping grep httpd nslookup mount hostname df head touch"
# A name that means --runtime vm, for callers who give a runtime no flags.
PROGRAM = f"{OURS}/mamushka-oci-vm"
ANNOTATION = ("--annotation", f"com.mamushka.machine.kernel={KERNEL}")
LIMITS = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000")
LIFE = "trap 'exit 7' TERM; echo pong > /t/x; httpd -p 80 -h /t; echo started; while :; do sleep 0.1; done"
MODULES = "veth bridge iptable_nat xt_MASQUERADE xt_conntrack xt_addrtype br_netfilter"


@pytest.fixture(scope="module", autouse=True)
def _host() -> None:
    peers.need_root()
    need_machines(*MODULES.split())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for pattern in (("-x", "mamushka-vm"), ("-f", "virtiofsd.*served")):
        assert subprocess.run(["pgrep", *pattern], capture_output=True).stdout == b""
    _until(lambda: not [name for name in os.listdir("/sys/class/net") if name.startswith(("mktap", "veth"))])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a file besides."""
    path = busybox_root(tmp_path_factory.mktemp("machines") / "root", PROGRAMS)
    (path / "full").mkdir()
    (path / "full" / "there").write_text("from the image\n")
    return path


@pytest.fixture(scope="module")
def archive(root: Path) -> str:
    """The same as a tar."""
    with tarfile.open(root.parent / "busy.tar", "w") as made:
        made.add(root, "/")
    return str(root.parent / "busy.tar")


class Caller:
    """An engine's command."""

    def __init__(self, *command: str) -> None:
        self.command = command

    def __call__(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        more = {"stdin": subprocess.DEVNULL, "timeout": 150, **more}
        return subprocess.run([*self.command, *words], capture_output=True, text=True, check=False, **more)

    def said(self, *words: str) -> str:
        """What it said, where it went well."""
        done = self(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()


# podman


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Iterator[Caller]:
    peers.need("podman")
    base = tmp_path_factory.mktemp("podman")
    caller = Caller(
        peers.find("podman"), "--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver", "vfs",
        "--cgroup-manager", "cgroupfs", "--runtime", PROGRAM,
    )  # fmt: skip
    caller.said("import", archive, "busy")
    yield caller
    caller("rm", "-af", "-t", "0")
    caller("rmi", "-af")
    peers.leave(base)


def test_podman(podman: Caller, tmp_path: Path) -> None:
    run = ("run", *ANNOTATION, *LIMITS)
    mounts = ("-v", f"{tmp_path}:/data", "--read-only", "--tmpfs", "/t", "--tmpfs", "/full", "-m", "128m")
    published = ("-p", "127.0.0.1:18082:80", "--cap-add", "NET_RAW")
    podman.said(*run, "-d", "--name", "life", *published, *mounts, "busy", "sh", "-c", LIFE)
    _until(lambda: podman.said("logs", "life") == "started")
    # Its own kernel's memory for what processes share; what the image has below a tmpfs; the volume, both ways.
    look = "df /dev/shm | grep -c ^shm; cat /full/there; touch /x 2>/dev/null || echo sealed; echo hi > /data/x; exit 3"
    done = podman("exec", "life", "sh", "-c", look)
    assert (done.returncode, done.stdout) == (3, "1\nfrom the image\nsealed\n"), done.stderr
    assert (tmp_path / "x").read_text() == "hi\n"
    _check_network(podman, "127.0.0.1:18082", podman.said("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "life"))
    assert podman("exec", "life", "nope").returncode == 127
    assert podman("exec", "-t", "life", "tty").stdout.strip() == "/dev/pts/0"
    podman.said("pause", "life")
    assert podman.said("inspect", "-f", "{{.State.Status}}", "life") == "paused"
    podman.said("unpause", "life")
    podman.said("stop", "-t", "20", "life")
    assert podman.said("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life") == "exited 7"
    podman.said("rm", "life")


def test_podman_gives_flags_and_tells_the_end(podman: Caller) -> None:
    """``--runtime-flag`` goes with each call of the runtime."""
    flags = (
        "--runtime",
        f"{OURS}/mamushka-oci",
        "--runtime-flag",
        "runtime=vm",
        "--runtime-flag",
        f"kernel={KERNEL}",
    )
    other = Caller(*podman.command, *flags)
    alone = ("--rm", "--network", "none", *LIMITS)
    done = other("run", *alone, "busy", "sh", "-c", "ip addr show lo | grep -c UP; id -u; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "1\n0\n", "err\n")
    assert other("run", *alone, "busy", "nope").returncode == 127
    done = other("run", *alone, "--pid", "host", "busy", "true")
    assert done.returncode == 126 and "processes of the host do not run" in done.stderr


def test_a_monitor_that_is_killed_under_podman_leaves_nothing(podman: Caller) -> None:
    podman.said("run", "-d", *ANNOTATION, "--name", "killed", *LIMITS, "busy", "sleep", "1000")
    os.kill(int(podman.said("inspect", "-f", "{{.State.Pid}}", "killed")), signal.SIGKILL)
    assert podman.said("wait", "killed") == "137"
    podman.said("rm", "killed")


# docker


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Iterator[Caller]:
    peers.need("docker", "dockerd")
    base = str(tmp_path_factory.mktemp("d"))
    words = f'["--runtime", "vm", "--kernel", "{KERNEL}"]'
    runtimes = f'{{"runtimes": {{"vm": {{"path": "{OURS}/mamushka-oci", "runtimeArgs": {words}}}}}}}'
    with dockerd(base, "--storage-driver=vfs", "--cgroup-parent", "mamushka-docker", configuration=runtimes) as client:
        caller = Caller(*client)
        caller.said("import", archive, "busy")
        yield caller
        for name in caller.said("ps", "-aq").split():
            caller("rm", "-f", name)


def test_docker(docker: Caller, tmp_path: Path) -> None:
    """Its prestart hook gives the machine its link, and its own resolver the names of the network."""
    docker.said("network", "create", "app")
    docker.said("run", "-d", "--name", "other", "--network", "app", "busy", "sleep", "1000")
    run = ("run", "-d", "--runtime", "vm", "--network", "app", "--name", "life")
    more = ("-p", "127.0.0.1:18083:80", "-v", f"{tmp_path}:/data", "--tmpfs", "/t", "--memory", "128m")
    docker.said(*run, *more, "busy", "sh", "-c", LIFE)
    _until(lambda: docker.said("logs", "life") == "started")
    done = docker("exec", "life", "sh", "-c", "echo hi > /data/x; grep -c nameserver /etc/resolv.conf; exit 3")
    assert (done.returncode, done.stdout) == (3, "1\n"), done.stderr
    assert (tmp_path / "x").read_text() == "hi\n"
    where = '{{(index .NetworkSettings.Networks "app").IPAddress}}'
    _check_network(docker, "127.0.0.1:18083", docker.said("inspect", "-f", where, "life"))
    address = docker.said("inspect", "-f", where, "other")
    assert address in docker.said("exec", "life", "nslookup", "other.", "127.0.0.11")
    docker.said("exec", "life", "ping", "-c", "1", "-w", "10", "other")
    docker.said("exec", "other", "ping", "-c", "1", "-w", "10", "life")
    # It asks for the host's processes: the monitor, whatever its command was.
    assert docker.said("inspect", "-f", "{{.State.Pid}}", "life") in docker.said("top", "life").split()
    docker.said("pause", "life")
    assert docker.said("inspect", "-f", "{{.State.Status}}", "life") == "paused"
    docker.said("unpause", "life")
    docker.said("update", "--cpu-shares", "512", "life")
    docker.said("stop", "-t", "20", "life")
    assert docker.said("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life") == "exited 7"
    docker.said("start", "life")  # and again, with another link
    docker.said("kill", "life")
    assert docker.said("wait", "life") == "137"
    docker.said("rm", "life")
    docker.said("rm", "-f", "other")
    docker.said("network", "rm", "app")


# containerd


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    peers.need("containerd", "ctr")
    base = str(tmp_path_factory.mktemp("c"))
    with open(f"{base}/config.toml", "w") as file:
        file.write(
            f'version = 2\nroot = "{base}/root"\nstate = "{base}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{base}/sock"\n[debug]\nlevel = "warn"\n'
        )
    with open(f"{base}/log", "wb") as log:
        daemon = subprocess.Popen(
            [peers.find("containerd"), "--config", f"{base}/config.toml"], stdout=log, stderr=log,
            env={**os.environ, "PATH": peers.PATH},
        )  # fmt: skip
    caller = Caller(peers.find("ctr"), "--address", f"{base}/sock", "--namespace", "machines")
    _until(lambda: caller("version").returncode == 0)
    yield caller
    daemon.terminate()
    daemon.wait(30)


def test_containerd(containerd: Caller, root: Path) -> None:
    run = ("run", "--runc-binary", PROGRAM, *ANNOTATION, "--rootfs")
    done = containerd(*run, "--rm", str(root), "one", "sh", "-c", "echo hi; echo err >&2; id -u; exit 5")
    assert (done.returncode, done.stdout) == (5, "hi\n0\n"), done.stderr
    done = containerd(*run, "--rm", str(root), "two", "nope")
    assert done.returncode == 1 and "not found" in done.stderr
    # ctr leaves what could be created and not be started: a machine is made when it is started.
    assert _tasks(containerd) == {"two": "STOPPED"}
    containerd("task", "rm", "--force", "two")  # ends as the task did
    containerd.said("container", "rm", "two")
    life = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
    # Files in place of pipes, which the machine would hold open.
    containerd.said(*run[:-1], "-d", "--null-io", "--rootfs", str(root), "life", "sh", "-c", life)
    _until(lambda: _tasks(containerd) == {"life": "RUNNING"})
    done = containerd("task", "exec", "--exec-id", "a", "life", "sh", "-c", "echo in; exit 3")
    assert (done.returncode, done.stdout) == (3, "in\n"), done.stderr
    assert "memory.usage" in containerd.said("task", "metrics", "life")
    containerd.said("task", "pause", "life")
    assert _tasks(containerd) == {"life": "PAUSED"}
    containerd.said("task", "resume", "life")
    assert _tasks(containerd) == {"life": "RUNNING"}
    containerd.said("task", "kill", "-s", "SIGTERM", "life")
    _until(lambda: _tasks(containerd) == {"life": "STOPPED"})
    assert containerd("task", "rm", "life").returncode in (0, 7)  # newer ones end as the task did
    containerd.said("container", "rm", "life")


def _tasks(caller: Caller) -> dict[str, str]:
    """What containerd says of each."""
    rows = (line.split() for line in caller.said("task", "ls").splitlines()[1:])
    return {row[0]: row[2] for row in rows}


def _check_network(caller: Caller, published: str, address: str) -> None:
    """Out to the gateway; in by a published port, and by the address."""
    for target in (published, f"{address}:80"):
        with urllib.request.urlopen(f"http://{target}/x", timeout=30) as answer:
            assert answer.read() == b"pong\n"
    gateway = caller.said("exec", "life", "sh", "-c", "set -- $(ip route | grep ^default); echo $3")
    caller.said("exec", "life", "ping", "-c", "1", "-w", "10", gateway)


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come true in a minute")
