"""sd_notify and socket activation through ``mamushka-oci``, with real sockets; under a real unit in the lab."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamushka.container.cgroups.bus import reachable
from tests import peers
from tests.integration.oci.conftest import PROGRAM, Oci

pytestmark = pytest.mark.root

# A static busybox has no client for unix datagrams; this needs nothing but the socket.
TELL = """
import os, socket, sys, time
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.connect(os.environ["NOTIFY_SOCKET"])
for words in sys.argv[1:]:
    if words == "wait":
        time.sleep(0.5)
    else:
        line.send(words.replace("+", "\\n").encode())
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "manager.sock"))
        line.settimeout(20)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        yield line


@pytest.fixture
def speaking(oci: Oci) -> Oci:
    """A bundle on the host's own root, read-only, so that Python is there to speak."""
    path = f"{oci.bundle}/config.json"
    text = Path(path).read_text().replace('"path": "rootfs"', '"path": "/"')
    Path(path).write_text(text)
    return oci


def tell(oci: Oci, *words: str, **process: Any) -> None:
    """Make the bundle's program one that says these."""
    oci.edit(sys.executable, "-I", "-S", "-c", TELL, *words, **process)


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager.sock")}


def pid_of(oci: Oci, id: str) -> str:
    return next(line.split()[1] for line in oci("list").stdout.splitlines() if line.startswith(f"{id} "))


def quietly(oci: Oci, told: dict[str, str], *arguments: str) -> int:
    """Without pipes, which the container would hold open."""
    null = subprocess.DEVNULL
    words = [PROGRAM, "--root", oci.state, *arguments]
    return subprocess.run(words, env=told, cwd=oci.bundle, stdin=null, stdout=null, timeout=60, check=False).returncode


def test_a_detached_run_ends_when_the_container_is_ready(speaking: Oci, manager: Any, tmp_path: Path) -> None:
    tell(speaking, "STATUS=warming up", "wait", "MAINPID=1+FDSTORE=1+READY=1", "wait", "wait", "wait", "wait")
    began = time.monotonic()
    assert quietly(speaking, environment(tmp_path), "run", "-d", "--pid-file", "pid", "a") == 0
    assert time.monotonic() - began > 0.5
    pid = Path(speaking.bundle, "pid").read_text()
    assert manager.recv(4096) == b"STATUS=warming up"
    assert manager.recv(4096) == f"READY=1\nMAINPID={pid}".encode()  # what it says of pids and descriptors stays out


def test_start_waits_for_a_created_one(speaking: Oci, manager: Any, tmp_path: Path) -> None:
    tell(speaking, "READY=1", *["wait"] * 10)
    assert quietly(speaking, environment(tmp_path), "create", "a") == 0
    assert quietly(speaking, environment(tmp_path), "start", "a") == 0
    assert manager.recv(4096) == f"READY=1\nMAINPID={pid_of(speaking, 'a')}".encode()
    assert speaking("delete", "--force", "a").returncode == 0
    assert os.listdir(speaking.state) == []


def test_a_second_start_takes_nothing_from_the_first(speaking: Oci, manager: Any, tmp_path: Path) -> None:
    """Nor does a manager that is gone end the container."""
    tell(speaking, "wait", "wait", "wait", "STATUS=later", "READY=1", *["wait"] * 10)
    assert quietly(speaking, environment(tmp_path), "create", "a") == 0
    words = [PROGRAM, "--root", speaking.state, "start", "a"]
    with subprocess.Popen(words, env=environment(tmp_path), cwd=speaking.bundle) as first:
        deadline = time.monotonic() + 10
        while '"running"' not in speaking("state", "a").stdout and time.monotonic() < deadline:
            time.sleep(0.02)
        done = speaking("start", "a", env=environment(tmp_path))
        assert (done.returncode, "already running" in done.stderr) == (1, True)
        manager.close()
        assert first.wait(20) == 0
    assert '"running"' in speaking("state", "a").stdout


def test_one_that_ends_without_a_word_is_not_waited_for(oci: Oci, manager: Any, tmp_path: Path) -> None:
    oci.edit("true")
    assert quietly(oci, environment(tmp_path), "create", "a") == 0
    assert quietly(oci, environment(tmp_path), "start", "a") == 0
    assert quietly(oci, environment(tmp_path), "run", "b") == 0
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1)


def test_a_foreground_run_passes_on_all_its_life(speaking: Oci, manager: Any, tmp_path: Path) -> None:
    tell(speaking, "READY=1", "STATUS=at work", "BARRIER=1", "WATCHDOG=1", "STOPPING=1", "wait")
    done = speaking("run", "a", env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert manager.recv(4096).startswith(b"READY=1\nMAINPID=")
    assert [manager.recv(4096) for _ in range(3)] == [b"STATUS=at work", b"WATCHDOG=1", b"STOPPING=1"]
    assert os.listdir(speaking.state) == []


def test_an_ordinary_user_inside_can_tell(speaking: Oci, manager: Any, tmp_path: Path) -> None:
    """And an abstract socket of the manager's is reached, too."""
    tell(speaking, "READY=1", "wait", user={"uid": 65534, "gid": 65534})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(f"\0mamushka-test-{os.getpid()}")
        line.settimeout(20)
        done = speaking("run", "a", env={**os.environ, "NOTIFY_SOCKET": f"@mamushka-test-{os.getpid()}"})
        assert done.returncode == 0, done.stderr
        assert line.recv(4096).startswith(b"READY=1")


def test_sockets_of_an_activated_service_are_handed_on(oci: Oci, tmp_path: Path) -> None:
    """LISTEN_FDS from 3 on, before those of --preserve-fds, and the variables as the program expects them."""
    oci.edit("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3; cat <&4; cat <&5; ls /proc/self/fd")
    (Path(oci.bundle) / "rootfs" / "bin" / "ls").symlink_to("busybox")
    for number, text in enumerate(("one", "two", "three"), 3):
        (tmp_path / str(number)).write_text(f"{text}\n")
    redirections = " ".join(f"{number}<{tmp_path}/{number}" for number in (3, 4, 5))
    script = f"exec env LISTEN_PID=$$ {PROGRAM} --root {oci.state} run --preserve-fds 1 a {redirections} 6</dev/null"
    told = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:admin"}
    done = subprocess.run(
        ["sh", "-c", script], env=told, cwd=oci.bundle, capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == ["2 1 http:admin", "one", "two", "three"], done
    assert lines[4:] == ["0", "1", "2", "3", "4", "5", "6"]  # 6 is ls's own


def test_other_ones_sockets_are_not_taken(oci: Oci) -> None:
    """LISTEN_PID names somebody else: the variables were inherited by accident."""
    oci.edit("sh", "-c", "echo -$LISTEN_FDS-; cat <&3")
    told = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    done = oci("run", "a", env=told)
    assert done.stdout == "--\n"


@pytest.mark.systemd
@pytest.mark.skipif(not reachable(user=False), reason="systemd is not the first process")
def test_under_a_unit_of_systemd(speaking: Oci, tmp_path: Path, unique: str) -> None:
    """Type=notify: the unit starts when the container is ready, and its main process is the container's."""
    peers.need("systemd-run")
    tell(speaking, "STATUS=almost", "wait", "READY=1", *["wait"] * 100)
    unit = f"{unique}.service"
    words = ["systemd-run", "--unit", unit, "--property=Type=notify", "--property=NotifyAccess=all"]
    words += [
        f"--working-directory={speaking.bundle}",
        PROGRAM,
        "--root",
        speaking.state,
        "--systemd-cgroup",
        "run",
        "a",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr  # it waits for READY=1
        shown = subprocess.run(
            ["systemctl", "show", unit], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        assert "ActiveState=active\n" in shown
        assert "StatusText=almost\n" in shown
        assert f"MainPID={pid_of(speaking, 'a')}\n" in shown
    finally:
        # The program is the first in its pid namespace, and has no handler: SIGTERM is nothing to it.
        subprocess.run(["systemctl", "kill", "--signal=KILL", unit], capture_output=True, check=False, timeout=60)
