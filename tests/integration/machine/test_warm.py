"""Machines that begin where another one stood: quicker, and nobody's twin. In the lab, as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.machine.linux_guest import busybox_root

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("machines")]
SCRIPT = (
    "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; "
    "cat /proc/sys/kernel/random/boot_id; date +%s; hostname"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return busybox_root(tmp_path / "root", "cat date head hostname ip od sh tr true wc grep sleep")


@pytest.fixture(autouse=True)
def _nothing_is_left(roots: tuple[str, str]) -> Iterator[None]:
    yield
    assert subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True).stdout == b""


def shelf(roots: tuple[str, str]) -> list[str]:
    path = Path(roots[0], "machines", "warm")
    return sorted(item.name for item in path.iterdir()) if path.is_dir() else []


def test_the_second_of_a_kind_is_warm_and_nobody_is_a_twin(
    mamushka: Command, root: Path, roots: tuple[str, str]
) -> None:
    def run(*words: str) -> tuple[list[str], str, float]:
        begin = time.monotonic()
        done = mamushka("--debug", "run", "--rm", "--runtime", "vm", *words, "--rootfs", str(root), "sh", "-c", SCRIPT)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().splitlines(), done.stderr.decode(), time.monotonic() - begin

    alone = ("--network", "none")
    runs = [run(*alone, "-h", f"box{number}") for number in range(3)]
    assert "machine.cold" in runs[0][1] and "warm.kept" in runs[0][1]
    for _, said, _ in runs[1:]:
        assert "machine.warm" in said and "machine.cold" not in said
    print([f"{seconds:.2f} s" for _, _, seconds in runs])
    assert len({words[0] for words, _, _ in runs}) == 3, "the same random bytes"
    assert len({words[1] for words, _, _ in runs}) == 3, "the same identity of a boot"
    assert [words[3] for words, _, _ in runs] == ["box0", "box1", "box2"]
    clocks = [int(words[2]) for words, _, _ in runs]
    assert clocks == sorted(clocks) and abs(clocks[-1] - time.time()) < 60
    assert runs[2][2] < runs[0][2]

    # Another kind is another machine; and whoever wants none of it says so.
    assert "machine.cold" in run(*alone, "-m", "256m")[1]
    said = run(*alone, "--cold")[1]
    assert "machine.cold" in said and "warm.kept" not in said
    assert len(shelf(roots)) == 4
    assert mamushka("system", "prune", "-f").returncode == 0
    assert shelf(roots) == []


def test_a_warm_machine_has_its_own_address(mamushka: Command, root: Path) -> None:
    found = []
    for name in ("one", "two"):
        done = mamushka(
            "--debug", "run", "-d", "--name", name, "--runtime", "vm", "--cpus", "2", "--rootfs", str(root),
            "sleep", "1000",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (b"machine.warm" in done.stderr) == (name == "two"), done.stderr
    began = mamushka("inspect", "-f", "{{.Runtime.Began}}", "one", "two")
    assert began.stdout == b"cold\nwarm\n", began.stderr
    for name, other in (("one", "two"), ("two", "one")):
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}"
        address, mac = mamushka("inspect", "-f", form, name).stdout.decode().split()
        shown = mamushka("exec", name, "ip", "addr", "show", "eth0").stdout.decode()
        assert address in shown and mac in shown, shown
        # Both processors go on, and agree on the time.
        clocks = "for n in 1 2 3 4 5 6; do busybox taskset $((n % 2 + 1)) busybox cat /proc/uptime; done"
        told = [float(word) for word in mamushka("exec", name, "sh", "-c", clocks).stdout.split()[::2]]
        assert len(told) == 6 and told == sorted(told), told
        found += [address, mac]
        assert mamushka("exec", other, "sh", "-c", f"busybox ping -c 1 -W 10 {address}").returncode == 0
    assert len(set(found)) == 4
    assert mamushka("rm", "-f", "one", "two").returncode == 0


def test_a_monitor_that_was_killed_while_it_wrote_leaves_nothing_that_counts(
    mamushka: Command, root: Path, roots: tuple[str, str]
) -> None:
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    words = ["--data-root", roots[0], "--run-root", roots[1], "run", "--rm", "--runtime", "vm", "--network", "none"]
    first = subprocess.Popen([program, *words, "--rootfs", str(root), "true"], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not shelf(roots) and time.monotonic() < end:
        time.sleep(0.05)
    pid = int(subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True, check=True).stdout.split()[0])
    os.kill(pid, signal.SIGKILL)
    first.wait(60)
    for wanted in (b"machine.cold", b"machine.warm"):
        done = mamushka("--debug", *words[4:], "--rootfs", str(root), "true")
        assert done.returncode == 0 and wanted in done.stderr, done.stderr
