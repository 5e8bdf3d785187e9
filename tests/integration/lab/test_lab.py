"""The lab itself: whoever works in it relies on its exit status, its first process and what failures bring home."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import __main__ as lab
from tests.lab import machine
from tests.lab.initramfs import ARTEFACTS

pytestmark = [pytest.mark.root, pytest.mark.slow]

FAILING = """
from mamushka import trace

def test_on_purpose():
    trace.event("plan.execute", operation="cut the branch we sit on")
    trace.event("branch.cut", length=3)
    assert 1 == 2, "on purpose"
"""


def enter(command: str, artefacts: Path, **options: Any) -> int:
    """Perform it in a machine."""
    if lacking := machine.missing() or lab.without_kernel():
        pytest.skip(lacking)
    environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": "/root"}
    options |= {"quiet": True}
    return machine.run(
        command, directory=lab.HERE, environment=environment, timeout=240, artefacts=str(artefacts), **options
    )


def said(command: str, artefacts: Path, **options: Any) -> str:
    """What is on the console of a machine in which it went well."""
    status = enter(command, artefacts, **options)
    console = (artefacts / "console.log").read_text()
    assert status == 0, console
    return console


def test_a_failing_test_brings_home_its_console_plan_and_trace(tmp_path: Path) -> None:
    """All three from inside the machine, which is gone by then."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.lab.artefacts",
             f"--artefacts={ARTEFACTS}", "-c", "/dev/null", "/run/made/test_made.py"]  # fmt: skip
    command = f"mkdir /run/made; printf %s {shlex.quote(FAILING)} >/run/made/test_made.py; {shlex.join(words)}"

    assert enter(command, tmp_path) == 1

    assert "on purpose" in (tmp_path / "console.log").read_text()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.name == "test_on_purpose.call"
    assert "assert 1 == 2" in (left / "report.txt").read_text()
    assert (left / "plan.txt").read_text() == "cut the branch we sit on\n"
    assert "branch.cut length=3" in (left / "trace.txt").read_text()


def test_the_command_can_be_a_unit_of_systemd(tmp_path: Path) -> None:
    """The real systemd with its bus, on cgroup v2 alone; the exit status comes home."""
    told = "cat /proc/1/comm /proc/self/cgroup; busctl status org.freedesktop.systemd1 | grep ^PID"
    status = enter(f"{told}; touch {ARTEFACTS}/here; exit 3", tmp_path, as_unit=True)
    console = (tmp_path / "console.log").read_text()
    assert status == 3
    assert "systemd\n0::/system.slice/lab.service\nPID=1\n" in console
    assert (tmp_path / "here").exists()


def test_it_has_what_machines_are_made_of(tmp_path: Path) -> None:
    """Hardware virtualization and the kernel's virtio back ends, for walls that are computers."""
    answer = "import fcntl, os; print('KVM API', fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE00))"
    told = f'modprobe -a kvm_amd vhost_net vhost_vsock && ls /dev/vhost-net /dev/vhost-vsock && python3 -c "{answer}"'
    assert "KVM API 12" in said(told, tmp_path)


def test_its_kernel_need_not_change_itself_for_the_first_machine(tmp_path: Path) -> None:
    """Or for the last one: some are there as soon as KVM is. See ``tests.lab.steady``."""
    held = "$(find /proc -maxdepth 3 -path '/proc/*/fd/*' -lname 'anon_inode:kvm-v[mc]*' 2>/dev/null | wc -l)"
    told = f"echo before {held}; modprobe -qa kvm-amd | cat; modprobe kvm-amd; echo machines {held}"
    try:
        console = said(told, tmp_path, silence=60.0)
    except RuntimeError:  # the emulator may stand still in just this moment, of all that it has: once more
        console = said(told, tmp_path, silence=60.0)
    assert "before 0\nmachines 4\n" in console, "two, each with a processor"


def test_a_machine_that_stands_still_says_where(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has said nothing for 15 s"):
        enter("echo begun; exec sleep 1000", tmp_path, silence=15.0)
    assert (tmp_path / "processors.txt").read_text(errors="replace").count("RIP=") == 2
    console = (tmp_path / "console.log").read_text()
    assert "begun" in console and "Kernel panic - not syncing: NMI" in console and "Call Trace" in console
