"""What is counted, not timed: these budgets hold on any host, however busy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.devices.virtio.vsock import Vsock
from tests import peers
from tests.integration.machine import linux_guest
from tests.integration.machine.guests import needs_kvm

# Clones so many times; what the interpreter does besides is in both runs.
_CLONES = """
from tests.integration.machine.test_state import again, assemble, running
from mamushka.machine import state
parent = running(assemble("again: mov dx, 0x600\\n out dx, al\\n jmp again"))
parent.pause()
saved, frozen = state.capture(parent, {}), state.freeze(parent)
for _ in range(COUNT):
    child = again(saved, frozen.fd)
    child.vcpus[0].run()
    child.close()
parent.close()
"""


def counted(count: int, place: Path) -> int:
    """System calls of a program that makes so many clones, one after the other, from one thread."""
    words = [peers.find("strace"), "-c", "-o", str(place), sys.executable, "-c", _CLONES.replace("COUNT", str(count))]
    subprocess.run(words, check=True, capture_output=True)
    total = next(line for line in place.read_text().splitlines() if line.endswith("total"))
    return int(total.split()[3])


@needs_kvm
def test_a_clone_takes_few_system_calls(tmp_path: Path) -> None:
    """Made, run to its first exit, closed: 24 calls are KVM's, and half of the rest close descriptors."""
    peers.need("strace")
    few, many = (counted(number, tmp_path / "counts") for number in (5, 55))
    assert (many - few) / 50 <= 52


# What a monitor does between its fork and its cage, but for what needs root; then which modules that brought.
_MADE = """
import sys
from mamushka.machine import maker
maker.preload()
before = set(sys.modules)
from mamushka.machine.board import Board, ram
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.cage import Cage
from mamushka.machine.computer import Computer, Interior
from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine import shares
from mamushka.spec.runtime import Config
board, vsock = Board(KvmExecutor(), ram(64 << 20)), Vsock()
board.add("vsock", vsock)
board.add("rng", Rng())
Computer(board, vsock, Interior(Config("1.2.0"), "/"))
command_line()
Cage()
board.close()
print(*sorted(set(sys.modules) - before))
"""


@needs_kvm
def test_a_monitor_imports_nothing() -> None:
    """Its creator has, once for all that it forks: each would cost time then, and memory for each machine."""
    done = subprocess.run([sys.executable, "-c", _MADE], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


_SAYS = "echo mark0\nsleep 8\necho mark1\ntimeout 8 sh -c 'while :; do :; done'"


@pytest.mark.lab
def test_python_is_reached_seldom() -> None:
    """By a boot 450 times (400 were counted, 160 fewer than with all 24 pins); idle 5 a second, busy 10.

    For memory the guest is left some hundred times, once for a large page: with small ones 25,000 times.
    """
    if not linux_guest.usable():
        pytest.skip("no KVM here that runs a stock kernel: make lab")
    devices = {"vsock": Vsock(), "rng": Rng()}
    with linux_guest.linux(_SAYS, devices, ("vmw_vsock_virtio_transport", "virtio_rng")) as guest:
        machine = guest.board.machine

        def count() -> int:
            return sum(sum(counts.copy().values()) for counts in machine.exits)

        machine.executor.counts()  # now: a guest that sleeps does not hand its counters over
        guest.start()
        found = {}
        for mark, most in (("mark0", 5), ("mark1", 10)):
            guest.until(mark)
            found[mark] = count()
            time.sleep(2)
            before = count()
            time.sleep(4)
            assert (count() - before) / 4 <= most, mark
        faults = machine.executor.counts()["pf_taken"]
        print(found, faults, machine.exits)
        assert found["mark0"] <= 450
        assert faults <= 2000
