"""Linux's own drivers against the devices: entropy, console, balloon, pmem, the serial port, the power switch."""

from __future__ import annotations

import os
import tempfile
import time

import pytest

from mamushka.machine.boot import layout
from mamushka.machine.devices.virtio.balloon import Balloon
from mamushka.machine.devices.virtio.pmem import Pmem
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.machine import OFF
from mamushka.machine.memory import PMEM, Region
from tests.integration.machine.linux_guest import needs_linux, shell

pytestmark = [*needs_linux, pytest.mark.slow]

MIB = 1 << 20


def test_drivers_of_linux() -> None:
    with (
        tempfile.TemporaryFile() as file,
        shell(["virtio-rng", "virtio_balloon", "virtio_pmem", "nd_pmem"]) as guest,
    ):
        board, machine = guest.board, guest.board.machine
        board.add("rng", Rng())
        balloon = Balloon(machine.memory)
        board.add("balloon", balloon)
        file.truncate(32 * MIB)
        region = Region(layout.PMEM, 32 * MIB, fd=os.dup(file.fileno()), shared=True, kind=PMEM, name="pmem")
        machine.memory.add(region)
        machine.executor.map(region)
        board.add("pmem", Pmem(region))
        begun = time.monotonic()
        guest.start()
        assert guest.run("echo ready") == "ready"
        print(f"shell after {time.monotonic() - begun:.1f} s, exits {machine.exits}")

        # Entropy
        assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
        first = guest.run("head -c 4096 /dev/hwrng | md5sum")
        assert first != guest.run("head -c 4096 /dev/hwrng | md5sum")

        # Console: the terminal, its size, and bytes without loss through the named port
        assert guest.run("stty -F /dev/hvc0 size") == "24 80"
        machine.loop.call(lambda: guest.console.resize(132, 43))
        assert guest.run("stty -F /dev/hvc0 size") == "43 132"
        guest.run("echo out > /dev/hvc0")
        assert b"out" in b"".join(guest.typed)
        os.write(guest.keys, b"typed\n")
        assert guest.run("head -n 1 /dev/hvc0") == "typed"
        many = guest.run("seq 20000")
        assert many.split() == [str(number) for number in range(1, 20001)]

        # Balloon: 64 MiB go and come back; free pages are reported; figures
        available = int(guest.run("awk '/MemFree/{print $2}' /proc/meminfo"))
        held = resident(board)
        machine.loop.call(lambda: balloon.resize(64 * MIB))
        until(lambda: balloon.size == 64 * MIB)
        assert available - int(guest.run("awk '/MemFree/{print $2}' /proc/meminfo")) > 48 << 10
        assert balloon.released >= 64 * MIB
        print(f"resident {held >> 20} MiB, with a balloon of 64 MiB {resident(board) >> 20} MiB")
        found = balloon.statistics(machine.loop, 10)
        assert 100 * MIB < found["total"] < 256 * MIB and found["free"] > 0
        machine.loop.call(lambda: balloon.resize(0))
        until(lambda: balloon.size == 0)
        guest.run("dd if=/dev/zero of=/junk bs=1M count=60 2>/dev/null")
        filled, before = resident(board), balloon.released
        guest.run("rm /junk")
        until(lambda: balloon.released - before > 32 * MIB)
        print(f"resident {filled >> 20} MiB with a file of 60 MiB, {resident(board) >> 20} MiB after it was removed")

        # Pmem: written, flushed, and in the host's file
        assert guest.run("cat /sys/block/pmem0/size") == str(32 * MIB // 512)
        guest.run("echo kept | dd of=/dev/pmem0 conv=fsync 2>/dev/null")
        assert os.pread(file.fileno(), 4, 0) == b"kept"

        # Idle: nothing reaches Python
        time.sleep(1)
        before_idle = sum(machine.exits[0].values())
        time.sleep(5)
        print(f"exits in 5 idle seconds: {sum(machine.exits[0].values()) - before_idle}; all: {machine.exits}")

        guest.tell("poweroff -f")
        end = machine.wait(60)
        assert end is not None and end.kind == OFF, end


def resident(board: object) -> int:
    """Bytes of the guest's RAM that the host has."""
    return os.fstat(board.machine.memory.regions[0].fd).st_blocks * 512  # type: ignore[attr-defined]


def until(check: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
