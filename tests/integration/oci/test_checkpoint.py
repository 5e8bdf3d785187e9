"""``mamushka-oci checkpoint`` and ``restore`` as callers use them, beside runc's, and below podman."""

from __future__ import annotations

import array
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import host, peers

from .conftest import Oci
from .test_podman import LIMITS, Podman, podman  # noqa: F401  the fixture

pytestmark = [pytest.mark.root, pytest.mark.lab]
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"


@pytest.fixture
def criu() -> None:
    lacking = host.lacks_criu()
    if lacking:
        pytest.skip(lacking)


class Counting:
    """A detached container of the bundle that counts into a pipe, started by one of two runtimes."""

    def __init__(self, runtime: list[str], bundle: str) -> None:
        self.runtime, self.bundle = [*runtime, "--log", f"{bundle}/log"], bundle
        self.reading, self.writing = os.pipe()

    def __call__(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.runtime, *words], stdin=subprocess.DEVNULL, stdout=self.writing, stderr=subprocess.PIPE,
            cwd=self.bundle, timeout=120, check=False, env={**os.environ, "PATH": peers.PATH},
        )  # fmt: skip

    def well(self, *words: str) -> None:
        done = subprocess.run(
            [*self.runtime, *words], stdin=subprocess.DEVNULL, stdout=self.writing, stderr=subprocess.DEVNULL,
            cwd=self.bundle, timeout=120, check=False, env={**os.environ, "PATH": peers.PATH},
        )  # fmt: skip
        assert done.returncode == 0, (words, self.said())

    def said(self) -> str:
        """What the runtime has logged."""
        with open(f"{self.bundle}/log") as file:
            return file.read()

    def numbers(self, least: int) -> list[int]:
        text = b""
        deadline = time.monotonic() + 60
        while text.count(b"\n") < least:
            assert time.monotonic() < deadline, text
            if select.select([self.reading], [], [], 1)[0]:
                text += os.read(self.reading, 65536)
        return [int(line) for line in text.split()]

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def counting(oci: Oci) -> Iterator[Counting]:
    oci.edit("/bin/sh", "-c", COUNT)
    from .conftest import PROGRAM

    made = Counting([PROGRAM, "--root", oci.state], oci.bundle)
    yield made
    made.close()


def going_on(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_count_goes_on(oci: Oci, counting: Counting, criu: None, tmp_path: Path) -> None:
    images, work = str(tmp_path / "images"), str(tmp_path / "work")
    counting.well("run", "-d", "one")
    numbers = counting.numbers(3)
    done = oci("checkpoint", "--image-path", images, "--work-path", work, "one")
    assert done.returncode == 0, done.stderr
    assert oci("list", "-q").stdout == "", "as with runc it is deleted"
    assert os.path.exists(f"{work}/dump.log")
    numbers += counting.numbers(0)
    pid_file = str(tmp_path / "pid")
    counting.well("restore", "-d", "--image-path", images, "--work-path", work, "--pid-file", pid_file, "one")
    numbers += counting.numbers(3)
    assert going_on(numbers)
    state = json.loads(oci("state", "one").stdout)
    with open(pid_file) as file:
        assert int(file.read()) == state["pid"]
    assert state["status"] == "running"
    assert oci("exec", "one", "echo", "in").stdout == "in\n"
    assert oci("delete", "--force", "one").returncode == 0


def test_in_the_foreground_its_end_is_the_commands(oci: Oci, counting: Counting, criu: None, tmp_path: Path) -> None:
    oci.edit("/bin/sh", "-c", "trap 'exit 7' USR1; " + COUNT)
    counting.well("run", "-d", "one")
    counting.numbers(1)
    images = str(tmp_path / "images")
    assert oci("checkpoint", "--image-path", images, "one").returncode == 0
    drained(counting.reading)
    command = [*counting.runtime, "restore", "--image-path", images, "one"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=counting.writing, cwd=oci.bundle)
    try:
        counting.numbers(2)
        assert oci("kill", "one", "USR1").returncode == 0
        assert process.wait(60) == 7
    finally:
        process.kill()
        process.wait()
    assert oci("list", "-q").stdout == ""


def test_a_terminal_goes_to_the_console_socket(oci: Oci, criu: None, tmp_path: Path) -> None:
    oci.edit("/bin/sh", "-c", "while read line; do echo got $line $((n=n+1)); done", terminal=True)
    images = str(tmp_path / "images")
    for number, verb in enumerate((["run", "-d"], ["restore", "-d", "--image-path", images]), 1):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / f"console{number}"))
            listener.listen()
            assert oci.quietly(*verb, "--console-socket", str(tmp_path / f"console{number}"), "one") == 0
            console = received(listener)
        os.write(console, b"word\n")
        said = b""
        while f"got word {number}".encode() not in said:
            said += os.read(console, 4096)
        if number == 1:
            done = oci("checkpoint", "--image-path", images, "one")
            assert done.returncode == 0, done.stderr
        os.close(console)


def received(listener: socket.socket) -> int:
    line, _ = listener.accept()
    with line:
        _, control, _, _ = line.recvmsg(1024, socket.CMSG_SPACE(4))
        return array.array("i", control[0][2])[0]


def test_pre_dump_and_leave_running(oci: Oci, counting: Counting, criu: None, tmp_path: Path) -> None:
    counting.well("run", "-d", "one")
    counting.numbers(1)
    done = oci("checkpoint", "--pre-dump", "--image-path", str(tmp_path / "first"), "one")
    assert done.returncode == 0, done.stderr
    assert json.loads(oci("state", "one").stdout)["status"] == "running"
    done = oci(
        "checkpoint", "--leave-running", "--parent-path", "../first", "--image-path", str(tmp_path / "second"),
        "--manage-cgroups-mode", "full", "--file-locks", "one",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(oci("state", "one").stdout)["status"] == "running"
    assert (tmp_path / "second" / "parent").is_symlink()
    oci("delete", "--force", "one")


def test_what_runc_has_written_down_goes_on(oci: Oci, counting: Counting, criu: None, tmp_path: Path) -> None:
    peers.need("runc")
    runc = Counting([peers.find("runc"), "--root", str(tmp_path / "runc")], oci.bundle)
    images = str(tmp_path / "images")
    try:
        runc.well("run", "-d", "one")
        numbers = runc.numbers(2)
        runc.well("checkpoint", "--image-path", images, "--work-path", str(tmp_path / "work"), "one")
        numbers += [int(word) for word in drained(runc.reading)]
        counting.well("restore", "-d", "--image-path", images, "--work-path", str(tmp_path / "more"), "one")
        assert going_on(numbers + counting.numbers(2))
        counting.well("delete", "--force", "one")
    finally:
        runc("delete", "--force", "one")
        runc.close()


def drained(reading: int) -> list[bytes]:
    os.set_blocking(reading, False)
    try:
        return os.read(reading, 65536).split()
    except BlockingIOError:
        return []
    finally:
        os.set_blocking(reading, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint", "--manage-cgroups-mode", "some", "one"], "no mode 'some' for cgroups"),
        (["checkpoint", "--empty-ns", "pid", "one"], "only network"),
        (["checkpoint", "--status-fd", "1", "one"], "standard stream"),
        (["checkpoint", "--page-server", "nowhere", "one"], "ADDRESS:PORT"),
        (["checkpoint", "two"], "container does not exist"),
        (["restore", "--image-path", "/nowhere", "two"], "no checkpoint at /nowhere"),
        (["restore", "-d", "--console-socket", "/nowhere", "two"], "console socket"),
    ],
)
def test_what_is_refused(oci: Oci, counting: Counting, words: list[str], said: str) -> None:
    counting.well("run", "-d", "one")
    done = oci(*words)
    assert done.returncode == 1
    assert said in done.stderr
    assert json.loads(oci("state", "one").stdout)["status"] == "running"


@pytest.mark.peer
@pytest.mark.slow
def test_podman(podman: Podman, criu: None, tmp_path: Path) -> None:  # noqa: F811
    """Its own verbs, a file between two names, by our runtime as by runc."""
    unlabelled = ("--security-opt", "apparmor=unconfined")
    done = podman("run", "-d", "--name", "counting", *LIMITS, *unlabelled, "busy", "sh", "-c", COUNT)
    assert done.returncode == 0, done.stderr
    before = counted(podman, "counting", 3)
    done = podman("container", "checkpoint", "counting")
    assert done.returncode == 0, done.stderr
    assert podman("inspect", "--format", "{{.State.Status}}", "counting").stdout.strip() == "exited"
    done = podman("container", "restore", "counting")
    assert done.returncode == 0, done.stderr
    assert counted(podman, "counting", before + 3) >= before + 3
    archive = str(tmp_path / "counting.tar")
    done = podman("container", "checkpoint", "--export", archive, "counting")
    assert done.returncode == 0, done.stderr
    last = counted(podman, "counting", 1)
    assert podman("rm", "counting").returncode == 0
    done = podman("container", "restore", "--import", archive, "--name", "again")
    assert done.returncode == 0, done.stderr
    numbers = [int(word) for word in podman("logs", "again").stdout.split()]
    assert counted(podman, "again", last + 2) >= last + 2
    assert numbers == sorted(numbers), "it does not begin anew"
    assert podman("rm", "-f", "-t", "0", "again").returncode == 0


def counted(podman: Podman, name: str, least: int) -> int:  # noqa: F811
    """How far it has counted, once it is far enough."""
    deadline = time.monotonic() + 60
    while True:
        found = re.findall(r"^\d+$", podman("logs", name).stdout, re.MULTILINE)
        if found and int(found[-1]) >= least:
            return int(found[-1])
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
