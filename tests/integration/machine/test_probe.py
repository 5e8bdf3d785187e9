"""What kind of KVM a host has."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mamushka.machine.executors.kvm import probe
from mamushka.machine.vcpu import Write
from tests.integration.machine.guests import needs_kvm

SOURCE = Path(probe.__file__).with_name("probe_x86_64.s")


def test_the_instructions_are_those_of_the_source(tmp_path: Path) -> None:
    try:
        subprocess.run(["as", "-o", tmp_path / "o", SOURCE], check=True)
    except FileNotFoundError:
        pytest.skip("no assembler: apt-get install binutils")
    words = ["ld", "-N", "-Ttext=0x1000", "-e", "0x1000", "--oformat=binary", "-o", tmp_path / "b", tmp_path / "o"]
    subprocess.run(words, check=True)
    assert (tmp_path / "b").read_bytes() == probe._CODE


@needs_kvm
def test_this_host_is_told_in_milliseconds() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        found = probe.probe()
        times.append(time.perf_counter() - begin)
    print(found, f"{min(times) * 1e3:.1f} ms")
    assert found.kind in (probe.HARDWARE, probe.NESTED, probe.SOFTWARE)
    assert found.usable == (found.nanoseconds < 200)
    assert found.usable or found.reason
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.lab
@needs_kvm
def test_a_nested_one_is_usable() -> None:
    if b"svm" not in Path("/proc/cpuinfo").read_bytes():
        pytest.skip("the host's processor offers no virtualization: the lab's does")
    found = probe.probe()
    assert found.usable and found.kind == probe.NESTED, found


def test_who_is_slow_at_times_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = (1500 * 1116.0, True), (1500 * 30.0, True)
    found = iter([slow] * 7 + [fast])
    monkeypatch.setattr(probe, "_attempt", lambda device: next(found))
    assert probe.probe().nanoseconds == 30
    monkeypatch.setattr(probe, "_attempt", lambda device: slow)
    refused = probe.probe()
    assert not refused.usable and "1116 ns an instruction" in refused.reason


def test_what_others_take_of_the_processor_does_not_count() -> None:
    class Waits:
        def run(self) -> Write:
            time.sleep(0.05)
            return Write(address=probe._ENDED, size=1, value=0)

    waits: Any = Waits()
    assert probe._lap(waits) < 25e6


def test_none_is_absent() -> None:
    assert probe.probe("/nowhere/kvm").kind == probe.ABSENT
