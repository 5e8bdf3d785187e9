"""Networks of our own engine with machines in them: names of both walls, both families, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.machine.test_vm import root

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("machines")]
__all__ = ["root"]


def _links() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name not in ("lo", "sit0")}


def _namespaces() -> int:
    return len(subprocess.run(["lsns", "-t", "net", "-n"], capture_output=True, check=True).stdout.splitlines())


@pytest.fixture(autouse=True)
def _nothing_is_left(mamushka: Command) -> Iterator[None]:
    before = _links(), _namespaces()
    yield
    for name in mamushka("ps", "-aq").stdout.decode().split():
        mamushka("rm", "-f", name)
    mamushka("network", "rm", "app")
    _until(lambda: (_links() - {"mamushka0"}, _namespaces()) == (before[0] - {"mamushka0"}, before[1]))
    for pattern in (("-x", "mamushka-vm"), ("-f", "virtiofsd.*machines")):
        assert subprocess.run(["pgrep", *pattern], capture_output=True).stdout == b""
    assert not Path("/sys/fs/cgroup/mamushka").exists()


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come true in 20 s")


def test_a_container_and_a_machine_in_one_network(mamushka: Command, root: Path) -> None:
    done = mamushka("network", "create", "--subnet", "10.91.0.0/24", "--subnet", "fd91::/64", "app")
    assert done.returncode == 0, done.stderr
    www = root / "www"
    www.mkdir()
    (www / "x").write_text("pong\n")
    serve = "busybox httpd -p 80 -h /www; while :; do sleep 1; done"
    for name, wall in (("box", "container"), ("machine", "vm")):
        words = ("run", "-d", "--name", name, "--runtime", wall, "--network", "app", "--rootfs", str(root))
        done = mamushka(*words, "sh", "-c", serve)
        assert done.returncode == 0, done.stderr
    where = '{{(index .NetworkSettings.Networks "app").IPAddress}}'
    for name, other in (("box", "machine"), ("machine", "box")):
        address = mamushka("inspect", "-f", where, other).stdout.decode().strip()
        script = (
            f"busybox nslookup {other} 127.0.0.11; ping -c 1 -w 20 {other} && "
            f"printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 20 {address} 80 && ping -6 -c 1 -w 20 {other}"
        )
        done = mamushka("exec", name, "sh", "-c", script)
        assert done.returncode == 0 and b"pong\n" in done.stdout, (name, done.stdout, done.stderr)
    seen = mamushka("exec", "machine", "sh", "-c", "ip -6 addr show eth0; ip -6 route; ip link show lo").stdout
    assert b"fd91::" in seen and b"default via fd91::1" in seen and b"LOOPBACK,UP" in seen
    # The end of the machine's process, and of the one that keeps it.
    os.kill(int(mamushka("inspect", "-f", "{{.State.Pid}}", "machine").stdout), signal.SIGKILL)
    _until(lambda: mamushka("inspect", "-f", "{{.State.ExitCode}}", "machine").stdout == b"137\n")
    done = mamushka("start", "machine")  # in a namespace of its own again
    assert done.returncode == 0, done.stderr
    assert mamushka("exec", "machine", "ping", "-c", "1", "-w", "20", "box").returncode == 0


def test_a_killed_shim_leaves_what_rm_removes(mamushka: Command, root: Path) -> None:
    done = mamushka("run", "-d", "--runtime", "vm", "-p", "18084:80", "--rootfs", str(root), "sleep", "1000")
    assert done.returncode == 0, done.stderr
    name = done.stdout.decode().strip()
    monitor = mamushka("inspect", "-f", "{{.State.Pid}}", name).stdout.decode().strip()
    status = Path(f"/proc/{monitor}/status").read_text()
    os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
    assert mamushka("rm", "-f", name).returncode == 0
    assert not Path(f"/proc/{monitor}").exists()


def test_alone_with_its_loopback(mamushka: Command, root: Path) -> None:
    script = "ping -c 1 -w 10 127.0.0.1 | grep -c '1 packets received'; ls /sys/class/net"
    done = mamushka("run", "--rm", "--runtime", "vm", "--network", "none", "--rootfs", str(root), "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, b"1\nlo\n"), done.stderr
