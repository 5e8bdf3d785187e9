"""``--runtime vm`` from end to end, as a user types it: the same as behind the container's wall, in a machine.

Each machine takes some ten seconds under emulation, so a test does all that one machine can show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.machine.linux_guest import busybox_root

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("machines")]
ALONE = ("--network", "none")
PROGRAMS = (
    "cat cut echo env false grep head hostname id ip ls mkdir ping ps pwd sh sleep stty touch tr true tty uname wc"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return busybox_root(tmp_path / "root", PROGRAMS)


@pytest.fixture(autouse=True)
def _nothing_is_left(roots: tuple[str, str]) -> Iterator[None]:
    yield
    machines = Path(roots[1], "machines")
    assert not machines.exists() or list(machines.iterdir()) == []
    assert subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True).stdout == b""
    assert subprocess.run(["pgrep", "-f", "virtiofsd.*machines"], capture_output=True).stdout == b""


def test_it_is_as_behind_the_other_wall(mamushka: Command, root: Path) -> None:
    """One command with all that a wall must give; both walls say the same."""
    script = (
        "id; pwd; hostname; env | grep -v HOSTNAME; cat; echo err >&2; test -w / && echo writable; "
        "touch /volume/made && ls /volume; touch /refused 2>&1; cat /etc/hostname; "
        "grep 'Cap\\|NoNewPrivs\\|^Seccomp:' /proc/self/status; ulimit -n; ls /dev; exit 7"
    )
    said = []
    for wall in ("container", "vm"):
        volume = root.parent / wall
        volume.mkdir()
        volume.chmod(0o777)
        done = mamushka(
            "run", "--rm", "-i", *ALONE, "--runtime", wall, "-u", "somebody", "-w", "/tmp", "-h", "box", "-e", "X=y",
            "--ulimit", "nofile=100:200", "--cap-drop", "ALL", "--cap-add", "CHOWN", "-v", f"{volume}:/volume",
            "--rootfs", str(root), "sh", "-c", script, input=b"through\n",
        )  # fmt: skip
        assert (volume / "made").stat().st_uid == 1000
        said.append((done.returncode, done.stdout.decode(), done.stderr))
    assert said[0] == said[1]
    assert said[1][0] == 7 and "through" in said[1][1] and said[1][2] == b"err\n"


def test_the_life_of_a_machine(mamushka: Command, root: Path) -> None:
    script = (
        "trap 'echo told; exit 5' TERM; mkdir /www; echo content > /www/index.html; "
        "busybox httpd -p 80 -h /www; echo up; while :; do sleep 0.1; done"
    )
    volume = root.parent / "volume"
    volume.mkdir()
    started = mamushka(
        "run", "-d", "--name", "box", "--runtime", "vm", "--cpus", "2", "-m", "256m", "-p", "127.0.0.1:18080:80", "-v",
        f"{volume}:/volume", "--rootfs", str(root), "sh", "-c", script,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    _until(lambda: mamushka("logs", "box").stdout == b"up\n")
    found = json.loads(mamushka("inspect", "box").stdout)[0]
    assert found["State"]["Running"] and found["HostConfig"]["Runtime"] == "vm"

    # its hardware, and its network
    seen = mamushka("exec", "box", "sh", "-c", "grep -c ^processor /proc/cpuinfo; head -1 /proc/meminfo | tr -dc 0-9")
    assert int(seen.stdout.split()[0]) == 2 and 180 << 10 < int(seen.stdout.split()[1]) <= 256 << 10
    address = found["NetworkSettings"]["IPAddress"]
    assert address.encode() in mamushka("exec", "box", "ip", "addr", "show").stdout
    for target in (f"{address}:80", "127.0.0.1:18080"):
        with urllib.request.urlopen(f"http://{target}/", timeout=20) as answer:
            assert answer.read() == b"content\n"

    # further processes
    assert mamushka("exec", "box", "sh", "-c", "exit 9").returncode == 9
    assert mamushka("exec", "-i", "box", "cat", input=b"x" * 300_000).stdout == b"x" * 300_000
    done = mamushka("exec", "-u", "somebody", "box", "id", "-u")
    assert done.stdout == b"1000\n", (done.returncode, done.stderr)
    assert mamushka("exec", "box", "/no/such").returncode == 127
    assert b"httpd" in mamushka("top", "box").stdout
    assert b"box" in mamushka("stats", "--no-stream", "box").stdout

    # files, also in what is mounted over the root
    (root.parent / "file").write_text("copied\n")
    for directory in ("/tmp", "/volume"):
        assert mamushka("cp", str(root.parent / "file"), f"box:{directory}/").returncode == 0
        assert mamushka("exec", "box", "cat", f"{directory}/file").stdout == b"copied\n"
        assert b"copied\n" in mamushka("cp", f"box:{directory}/file", "-").stdout
    assert (volume / "file").read_text() == "copied\n"
    assert b"machine's own memory" in mamushka("cp", "box:/dev/shm/x", "-").stderr

    # holding still, and the end
    assert mamushka("pause", "box").returncode == 0
    assert mamushka("ps", "--format", "{{.State}}").stdout == b"paused\n"
    assert mamushka("exec", "box", "true").returncode == 1
    assert mamushka("unpause", "box").returncode == 0
    assert mamushka("stop", "-t", "20", "box").returncode == 0
    assert mamushka("logs", "box").stdout == b"up\ntold\n"
    assert mamushka("inspect", "-f", "{{.State.ExitCode}}", "box").stdout == b"5\n"
    assert b"A /www" in mamushka("diff", "box").stdout
    assert mamushka("rm", "box").returncode == 0


def test_a_killed_monitor_is_an_end_and_leaves_nothing(mamushka: Command, root: Path, roots: tuple[str, str]) -> None:
    name = (
        mamushka("run", "-d", *ALONE, "--runtime", "vm", "--rootfs", str(root), "sleep", "600").stdout.decode().strip()
    )
    further = subprocess.Popen([*_program(roots), "exec", name, "sleep", "600"])
    time.sleep(3)
    pid = int(mamushka("inspect", "-f", "{{.State.Pid}}", name).stdout)
    os.kill(pid, signal.SIGKILL)
    assert further.wait(30) == 137
    _until(lambda: mamushka("inspect", "-f", "{{.State.ExitCode}}", name).stdout == b"137\n")
    assert mamushka("rm", name).returncode == 0
    assert not Path("/sys/fs/cgroup/mamushka").exists()


def _program(roots: tuple[str, str]) -> list[str]:
    return [str(Path(sys.executable).parent / "mamushka"), "--data-root", roots[0], "--run-root", roots[1]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--pid", "host"), b"processes of the host do not run on the machine's kernel"),
        (("--network", "host"), b"the host's links are its kernel's"),
        (("--ipc", "host"), b"shared memory and semaphores of the host"),
        (("--device", "/dev/kvm"), b"/dev/kvm is a device of the host's kernel"),
        (("-m", "20m"), b"a machine has its own kernel and needs 64 MiB"),
        (("--kernel", "/nonexistent"), b"there is no kernel /nonexistent"),
    ],
)
def test_what_a_machine_cannot_honour_is_refused(
    mamushka: Command, root: Path, arguments: tuple[str, ...], reason: bytes
) -> None:
    done = mamushka("run", "--rm", "--runtime", "vm", *arguments, "--rootfs", str(root), "true")
    assert done.returncode == 125 and reason in done.stderr


def test_through_the_oci_command(root: Path, tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "mamushka-oci")

    def oci(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [program, "--root", str(tmp_path / "state"), "--runtime", "vm", *words]
        return subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=200, check=False)

    kernel = os.environ["MAMUSHKA_KERNEL"]
    (tmp_path / "rootfs").symlink_to(root)
    assert oci("spec").returncode == 0
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"]}
    config["process"]["apparmorProfile"] = "docker-default"  # engines add it without being asked
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "out", "wb") as out:
        made = [program, "--root", str(tmp_path / "state"), "--runtime", "vm", "--kernel", kernel, "create", "box"]
        subprocess.run(made, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True, timeout=200)
    assert json.loads(oci("state", "box").stdout)["status"] == "created"
    # The front needs not to be told which wall it is: it opens a gate.
    subprocess.run([program, "--root", str(tmp_path / "state"), "start", "box"], check=True, timeout=60)
    assert json.loads(oci("state", "box").stdout)["status"] == "running"
    assert oci("exec", "box", "sh", "-c", "exit 9").returncode == 9
    assert oci("delete", "box").returncode == 1
    assert oci("kill", "box", "TERM").returncode == 0
    _until(lambda: json.loads(oci("state", "box").stdout)["status"] == "stopped")
    subprocess.run([program, "--root", str(tmp_path / "state"), "delete", "box"], check=True, timeout=60)
    assert list((tmp_path / "state").iterdir()) == []


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true in 20 s")
