"""Machines that run are saved, go on, and are forked: as a user types it, and from Python. In the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mamushka as sdk
from mamushka.engine.engine import Engine
from mamushka.engine.machines import obstacle, open_machines
from tests.integration.machine.test_layers import base, image, link
from tests.lab.kernel import default_cache

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = "com.mamushka.machine.root"
WALL = ("--runtime", "vm", "--annotation", f"{ROOT}=layers")
PROGRAMS = "date head hostname ip od ping ps seq test tr"
# Its count in memory, on its disk and in its log; it ends as it is told to.
COUNTS = (
    "trap 'exit 7' TERM; n=0; while :; do n=$((n+1)); echo $n > /count; echo $n; "
    "[ $n = 1 ] && echo $(head -c 8 /dev/urandom | od -An -tx1) > /first; sleep 0.2; done"
)
ASK = "hostname; cat /etc/hostname; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; date +%s; cat /first"


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMUSHKA_KERNEL", f"{default_cache()}/kernel")
    for module in ("kvm-amd", "kvm-intel", "tun", "vhost_net"):
        subprocess.run(["modprobe", "-q", module], check=False)
    lacking = obstacle()
    if lacking:
        pytest.skip(f"{lacking}: make lab runs it")


@pytest.fixture(autouse=True)
def loaded(mamushka: Command, tmp_path: Path) -> Iterator[None]:
    """The image, and afterwards nothing that runs."""
    layers = [[*base(), *(link(f"bin/{name}", "busybox") for name in PROGRAMS.split())]]
    done = mamushka("load", "-i", image(tmp_path / "i.tar", "some", layers))
    assert done.returncode == 0, done.stderr
    yield
    left = mamushka("ps", "-aq").stdout.decode().split()
    if left:
        assert mamushka("rm", "-f", *left).returncode == 0
    assert subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True).stdout == b""


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.1)


def ran(mamushka: Command, *words: str) -> str:
    done = mamushka(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def begun(mamushka: Command, name: str, *words: str, network: str = "none", script: str = COUNTS) -> None:
    ran(mamushka, "run", "-d", "--name", name, *WALL, "--network", network, *words, "some", "sh", "-c", script)
    until(lambda: counts(mamushka, name)[-1:] >= [2], f"{name} counts")


def counts(mamushka: Command, name: str) -> list[int]:
    """What its program has logged."""
    return [int(line) for line in mamushka("logs", name).stdout.decode().replace("\r", "").split()]


def goes_on(mamushka: Command, name: str) -> list[int]:
    """Its log, two counts later: without a hole."""
    before = len(counts(mamushka, name))
    until(lambda: len(counts(mamushka, name)) >= before + 2, f"{name} goes on")
    logged = counts(mamushka, name)
    assert logged == list(range(logged[0], logged[0] + len(logged))), logged
    return logged


def test_a_machine_that_was_written_down_goes_on_in_its_place(mamushka: Command) -> None:
    begun(mamushka, "box")
    ran(mamushka, "container", "checkpoint", "box")
    assert ran(mamushka, "inspect", "-f", "{{.State.Status}}", "box") == "exited\n"
    last = counts(mamushka, "box")[-1]
    time.sleep(1)
    ran(mamushka, "container", "restore", "box")
    logged = goes_on(mamushka, "box")
    assert last + 1 in logged, "it begins where it stood, and nothing that it said is lost"
    assert ran(mamushka, "inspect", "-f", "{{.Runtime.Began}}", "box") == "restored\n"
    monitor = ran(mamushka, "inspect", "-f", "{{.State.Pid}}", "box").strip()
    threads = [path.read_text() for path in Path("/proc", monitor, "task").glob("*/status")]
    assert len(threads) >= 6, "virtual CPUs, devices, the disk's, control and its workers"
    assert all("\nSeccomp:\t2\n" in status for status in threads), "each is behind its filter of system calls"
    assert abs(int(ran(mamushka, "exec", "box", "date", "+%s")) - time.time()) < 30
    done = mamushka("exec", "box", "sh", "-c", "exit 5")
    assert done.returncode == 5
    ran(mamushka, "kill", "-s", "TERM", "box")
    assert ran(mamushka, "wait", "box") == "7\n"
    # It can be started as ever, on the disk that it has now.
    ran(mamushka, "start", "box")
    until(lambda: counts(mamushka, "box").count(1) == 2, "it began anew")


def test_memory_and_disk_of_a_snapshot_are_of_one_moment(mamushka: Command) -> None:
    """A program that writes down each count before it says it: the file never lags, also long after the snapshot."""
    script = "n=0; while :; do n=$((n+1)); echo $n > /count; [ $(cat /count) = $n ] || echo -1; echo $n; done"
    begun(mamushka, "box", script=script)
    assert ran(mamushka, "snapshot", "box") == "snapshot1\n"
    ran(mamushka, "exec", "box", "sh", "-c", "echo later > /later; sync")
    assert ran(mamushka, "snapshot", "box", "other") == "other\n"
    assert ran(mamushka, "checkpoint", "ls", "--format", "{{.Name}}", "box").split() == ["snapshot1", "other"]
    goes_on(mamushka, "box")
    ran(mamushka, "fork", "--checkpoint", "snapshot1", "-n", "2", "--name", "one", "--name", "two", "box")
    ran(mamushka, "fork", "--checkpoint", "other", "--name", "three", "box")
    for name in ("one", "two", "three"):
        assert min(goes_on(mamushka, name)) > 0
        there = mamushka("exec", name, "cat", "/later")
        assert (there.returncode == 0) == (name == "three"), there
    assert counts(mamushka, "one")[0] == counts(mamushka, "two")[0]
    ran(mamushka, "checkpoint", "rm", "box", "snapshot1")
    goes_on(mamushka, "one")


def test_forks_are_themselves_and_do_not_see_each_other(mamushka: Command) -> None:
    begun(mamushka, "box", "-p", "7070:80", network="bridge")
    done = mamushka("--debug", "fork", "-n", "2", "--name", "one", "--name", "two", "box")
    assert done.returncode == 0 and b"workload.forked" in done.stderr, done.stderr.decode()
    print([line for line in done.stderr.decode().splitlines() if "forked" in line])
    ids = done.stdout.decode().split()
    told = {name: ran(mamushka, "exec", name, "sh", "-c", ASK).splitlines() for name in ("box", "one", "two")}
    for (name, words), id in zip(list(told.items())[1:], ids, strict=True):
        assert words[0] == words[1] == id[:12], (name, words)
        assert abs(int(words[3]) - time.time()) < 60
    assert len({words[0] for words in told.values()}) == len({words[2] for words in told.values()}) == 3
    assert len({words[4] for words in told.values()}) == 1, "they have one past"
    first = {name: goes_on(mamushka, name)[0] for name in told}
    assert first["box"] == 1 < first["one"] == first["two"]
    # Addresses: its own, and no other's any more.
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}"
    places = {name: ran(mamushka, "inspect", "-f", form, name).split() for name in told}
    for name, (address, mac) in places.items():
        shown = ran(mamushka, "exec", name, "ip", "addr", "show", "eth0")
        assert shown.count("inet ") == 1 and f"{address}/" in shown and mac in shown, (name, shown)
        others = {place[0] for place in places.values()} - {address}
        for other in others:
            assert mamushka("exec", name, "ping", "-c", "1", "-W", "20", other).returncode == 0, (name, other)
    ports = {ran(mamushka, "port", name).split()[-1] for name in told}
    assert len(ports) == 3
    # What one writes the others do not see, in files and in memory.
    ran(mamushka, "exec", "one", "sh", "-c", "echo mine > /mine; sync; rm /count")
    for name in ("box", "two"):
        assert mamushka("exec", name, "cat", "/mine").returncode == 1
        assert int(ran(mamushka, "exec", name, "cat", "/count")) > 1
    # A fork of a fork, and another of the parent.
    ran(mamushka, "fork", "--name", "grand", "one")
    assert ran(mamushka, "exec", "grand", "cat", "/mine") == "mine\n"
    ran(mamushka, "fork", "--name", "three", "box")
    assert mamushka("exec", "three", "cat", "/mine").returncode == 1
    ran(mamushka, "rm", "-f", "box", "one")
    for name in ("two", "three", "grand"):
        goes_on(mamushka, name)


def test_a_terminal_and_further_processes_of_the_past(mamushka: Command) -> None:
    begun(mamushka, "box", "-t")
    ran(mamushka, "exec", "-d", "box", "sleep", "1000")
    ran(mamushka, "exec", "-d", "box", "sh", "-c", "while :; do echo talks || exit 3; sleep 0.2; done")
    ran(mamushka, "fork", "--name", "one", "box")
    goes_on(mamushka, "one")
    listed = ran(mamushka, "exec", "one", "ps")
    assert "sleep 1000" in listed, "it goes on"
    until(lambda: "talks" not in ran(mamushka, "exec", "one", "ps"), "nobody hears it: its pipe is broken")
    assert "talks" in ran(mamushka, "exec", "box", "ps")
    done = mamushka("exec", "one", "sh", "-c", "exit 9")
    assert done.returncode == 9
    goes_on(mamushka, "box")


def test_boxes_from_python(tmp_path: Path, roots: tuple[str, str]) -> None:
    with Engine(*roots) as engine:
        asked = {"runtime": "vm", "network": "none", "annotations": {ROOT: "layers"}, "engine": engine}
        with sdk.run("some", "sh", "-c", COUNTS, **asked) as box:  # type: ignore[arg-type]
            box.shell("echo kept > /kept").check()
            children = box.fork(2)
            for child in children:
                with child:
                    assert child.shell("cat /kept").stdout == "kept\n"
                    assert child.shell("hostname").stdout.strip() == child.id[:12]
            with box.snapshot(directory=str(tmp_path / "kept")) as snapshot:
                box.remove()
                for _ in range(2):
                    with snapshot.start() as later:
                        assert later.shell("cat /kept").stdout == "kept\n"
            assert not os.path.exists(snapshot.directory)
        assert engine.workloads(all=True) == []


def test_what_cannot_be_saved_says_why(mamushka: Command, tmp_path: Path) -> None:
    plain = ("--runtime", "vm", "--network", "none", "--annotation", f"{ROOT}=shared")
    ran(mamushka, "run", "-d", "--name", "shared", *plain, "some", "sleep", "1000")
    (tmp_path / "v").mkdir()
    ran(
        mamushka,
        "run",
        "-d",
        "--name",
        "bound",
        *WALL,
        "--network",
        "none",
        "-v",
        f"{tmp_path}/v:/v",
        "some",
        "sleep",
        "1000",
    )
    for name in ("shared", "bound"):
        for words in (("snapshot", name), ("fork", name), ("container", "checkpoint", name)):
            done = mamushka(*words)
            assert done.returncode and b"virtiofsd" in done.stderr and ROOT.encode() in done.stderr, (words, done)
        assert ran(mamushka, "exec", name, "echo", "alive") == "alive\n"
    assert len(ran(mamushka, "ps", "-aq").split()) == 2, "what was made for the children is gone"


def test_whoever_is_killed_while_he_saves_leaves_nothing(mamushka: Command, roots: tuple[str, str]) -> None:
    begun(mamushka, "box")
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    for after in (0.5, 0.8, 1.1, 1.4):
        words = [program, "--data-root", roots[0], "--run-root", roots[1], "snapshot", "box", "it"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as saver:
            time.sleep(after)
            saver.send_signal(signal.SIGKILL)
        goes_on(mamushka, "box")
        listed = ran(mamushka, "checkpoint", "ls", "--format", "{{.Name}}", "box").split()
        for name in listed:  # it was whole by then
            ran(mamushka, "checkpoint", "rm", "box", name)
    ran(mamushka, "snapshot", "box", "it")
    ran(mamushka, "fork", "--checkpoint", "it", "--name", "one", "box")
    goes_on(mamushka, "one")


@pytest.mark.parametrize("size", [128, 512, 1024])
def test_figures(mamushka: Command, roots: tuple[str, str], size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A parent's pause does not depend on its size, and an idle child has little of its own."""
    begun(mamushka, "box", "-m", f"{size}m", script="echo 1; echo 2; while :; do sleep 1000; done")
    fill = f"head -c {size // 4}m /dev/zero | tr '\\0' x > /dev/shm/filled; sync"
    ran(mamushka, "exec", "box", "sh", "-c", fill)
    machines = open_machines(f"{roots[1]}/machines")
    (id,) = ran(mamushka, "ps", "-q", "--no-trunc").split()
    stood = []
    for _ in range(2):
        with machines.hold(id) as held:
            stood.append(held.go_on())
    ran(mamushka, "fork", "-n", "2", "--name", "one", "--name", "two", "box")
    time.sleep(3)
    private = []
    for name in ("one", "two"):
        child = ran(mamushka, "inspect", "-f", "{{.Id}}", name).strip()
        private.append(machines.sample(child).memory.guest_private)
    with capsys.disabled():
        told = [f"{seconds * 1e3:.0f} ms" for seconds in stood], [f"{each / 2**20:.2f} MiB" for each in private]
        print(f"\n{size} MiB, stood {told[0]}; private memory of idle children {told[1]}")
    assert stood[0] < 2
    assert max(private) <= 2 << 20
