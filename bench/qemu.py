"""The peer of our machines: QEMU's smallest x86 machine, and what the kernel counted of it.

microvm, without PIT, PIC, clock and (but where its output is read) serial port, with the kernel, command line and
modules that ours gets, and an own first process that does what ours does (guest.c).

What QEMU's guests left for is in debugfs alone, in a directory for each machine; a machine that keeps its process when
it has ended keeps that too.
"""

from __future__ import annotations

import glob
import os
import select
import shutil
import subprocess
import time

from bench.machines import MEMORY

PROGRAM = "qemu-system-x86_64"
_MICROVM = "microvm,pit=off,pic=off,rtc=off,isa-serial={serial},auto-kernel-cmdline=on"
_DEBUGFS = "/sys/kernel/debug/kvm"
# So long nothing leaves a guest that has ended; one that lives has a clock.
_STILL = 4.0


def words(image: str, line: bytes = b"", initramfs: str = "", *more: str, serial: bool = False) -> list[str]:
    """The command; empty where it is not installed."""
    if shutil.which(PROGRAM) is None:
        return []
    machine = _MICROVM.format(serial="on" if serial else "off")
    found = [PROGRAM, "-M", machine, "-accel", "kvm", "-cpu", "host", "-m", str(MEMORY >> 20), "-nodefaults"]
    found += ["-no-user-config", "-display", "none", "-serial", "stdio" if serial else "none", "-no-reboot"]
    found += ["-kernel", image, "-append", line.decode()]
    return [*found, *(("-initrd", initramfs) if initramfs else ()), *more]


def lacking() -> str:
    """Why its exits cannot be counted; empty where they can."""
    if shutil.which(PROGRAM) is None:
        return "no QEMU here"
    return "" if os.path.isdir(_DEBUGFS) else f"{_DEBUGFS} is not there: mount -t debugfs debugfs /sys/kernel/debug"


class Counted:
    """One that runs, what it says at its serial port, and its counters; it is closed by its user."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._said = b""

    def until(self, mark: str, seconds: float = 300) -> int:
        """Wait for its word; exits until then."""
        end = time.monotonic() + seconds
        assert self._process.stdout is not None
        while mark.encode() not in self._said:
            piece = b""
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
            self._said += piece
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"QEMU's guest did not say {mark!r} but {self._said[-500:]!r}")
        return self.count("exits")

    def ended(self, seconds: float = 300) -> None:
        """Wait until nothing happens in it any more."""
        end, last, since = time.monotonic() + seconds, -1, time.monotonic()
        while time.monotonic() - since < _STILL:
            time.sleep(0.1)
            now = self.count("exits")
            if now != last or not now:
                last, since = now, time.monotonic()
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("QEMU's guest did not end")

    def count(self, name: str) -> int:
        """A counter of the kernel's; 0 while there is no machine yet."""
        found = glob.glob(f"{_DEBUGFS}/{self._process.pid}-*/{name}")
        if not found:
            return 0
        with open(found[0]) as file:
            return int(file.read())

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
