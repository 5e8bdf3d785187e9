"""Debian's podman with ``mamushka-oci`` for a runtime."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.container.cgroups.bus import reachable
from mamushka.linux import landlock
from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.slow]
PROGRAM = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")
# podman raises limits to a million descriptors, which needs a capability that a nested root may lack.
LIMITS = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000", "--network", "none")


class Podman:
    """podman with a store of its own."""

    def __init__(self, base: Any) -> None:
        self.command = [
            peers.find("podman"), "--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs", "--runtime", PROGRAM,
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.command, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With the image ``busy``."""
    peers.need_root()
    peers.need("podman", "busybox")
    base = tmp_path_factory.mktemp("podman")
    with tarfile.open(base / "busy.tar", "w") as archive:
        archive.add(peers.find("busybox"), "bin/busybox")
        for name in ("sh", "echo", "sleep", "tty", "stty", "id", "ps"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    made = Podman(base)
    done = made("import", str(base / "busy.tar"), "busy")
    assert done.returncode == 0, done.stderr
    yield made
    made("rm", "-af", "-t", "0")
    made("rmi", "-af")
    peers.leave(base)


def test_run(podman: Podman) -> None:
    done = podman("run", "--rm", *LIMITS, "busy", "sh", "-c", "echo hi; id -u; exit 5")
    assert (done.returncode, done.stdout) == (5, "hi\n0\n"), done.stderr


@pytest.mark.parametrize(("program", "code"), [("nope", 127), ("/bin", 126)])
def test_what_cannot_run(podman: Podman, program: str, code: int) -> None:
    assert podman("run", "--rm", *LIMITS, "busy", program).returncode == code


def test_a_terminal(podman: Podman) -> None:
    done = podman("run", "--rm", "-t", *LIMITS, "busy", "sh", "-c", "tty; echo done")
    assert done.returncode == 0 and "/dev/pts/0\ndone\n" in done.stdout, done.stderr
    master, slave = pty.openpty()
    command = [*podman.command, "run", "--rm", "-it", *LIMITS, "busy", "sh", "-c", "read x; echo got $x"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        os.write(master, b"word\n")
        text = b""
        while b"got word" not in text:
            text += os.read(master, 1000)
        process.wait(60)
    os.close(master)


@pytest.mark.skipif(landlock.abi() < 5, reason="Landlock's ABI is older than 5")
def test_a_landlock_policy_by_annotation(podman: Podman) -> None:
    policy = ("--annotation", "org.mamushka.landlock=ro rw:/dev")
    script = "echo x > /x || echo refused"
    done = podman("run", "-d", "--name", "locked", *policy, *LIMITS, "busy", "sh", "-c", f"{script}; sleep 1000")
    assert done.returncode == 0, done.stderr
    assert podman("exec", "locked", "sh", "-c", script).stdout == "refused\n"
    assert "refused" in podman("logs", "locked").stdout
    assert podman("rm", "-f", "-t", "0", "locked").returncode == 0


def test_the_life_of_a_container(podman: Podman) -> None:
    done = podman("run", "-d", "--name", "life", *LIMITS, "busy", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    done = podman("exec", "life", "sh", "-c", "echo in; exit 3")
    assert (done.returncode, done.stdout) == (3, "in\n"), done.stderr
    assert "/dev/pts" in podman("exec", "-t", "life", "tty").stdout
    assert podman("exec", "life", "nope").returncode == 127
    assert podman("pause", "life").returncode == 0
    assert podman("inspect", "--format", "{{.State.Status}}", "life").stdout.strip() == "paused"
    assert podman("unpause", "life").returncode == 0
    assert "sleep 1000" in podman("top", "life").stdout
    assert podman("kill", "life").returncode == 0
    assert podman("wait", "life").stdout.strip() == "137"
    assert podman("rm", "life").returncode == 0


def test_limits_and_volumes(podman: Podman, tmp_path: Any) -> None:
    arguments = (
        "run",
        "--rm",
        *LIMITS,
        "--memory",
        "64m",
        "--tmpfs",
        "/scratch",
        "-v",
        f"{tmp_path}:/data:ro",
        "--read-only",
    )
    done = podman(*arguments, "busy", "sh", "-c", "echo x > /scratch/x && echo x > /data/x || echo refused")
    assert "refused" in done.stdout, done.stderr


@pytest.mark.systemd
@pytest.mark.skipif(not reachable(user=False), reason="systemd is not the first process")
def test_cgroups_by_systemd(podman: Podman) -> None:
    """podman's own default where systemd runs: it names a scope, and expects to find the container in it."""
    command = [word if word != "cgroupfs" else "systemd" for word in podman.command]

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )

    limits = ("--memory", "64m", "--cgroupns", "host", *LIMITS)
    done = call("run", "-d", "--name", "scoped", *limits, "busy", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    unit = f"libpod-{done.stdout.strip()}.scope"
    shown = subprocess.run(["systemctl", "show", unit], capture_output=True, text=True, timeout=60, check=True).stdout
    for line in ("ActiveState=active", "Slice=machine.slice", f"MemoryMax={64 << 20}", "Delegate=yes"):
        assert f"{line}\n" in shown
    done = call("exec", "scoped", "sh", "-c", "cat /proc/self/cgroup; echo in")
    assert done.stdout == f"0::/machine.slice/{unit}\nin\n", done.stderr
    assert call("pause", "scoped").returncode == 0
    assert call("unpause", "scoped").returncode == 0
    assert call("rm", "-f", "-t", "0", "scoped").returncode == 0
    shown = subprocess.run(["systemctl", "show", unit], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "LoadState=not-found\n" in shown
