"""Timers that are descriptors: readable when the time has come, so that whoever waits for others waits for them too."""

from __future__ import annotations

import os
import time

from mamushka.linux.abi import s64, struct, syscall

TFD_CLOEXEC = 0x80000
TFD_NONBLOCK = 0x800


@struct
class timespec:
    """A time, or how long. 64-bit hosts."""

    tv_sec: s64 = 0
    tv_nsec: s64 = 0


@struct
class itimerspec:
    """When first, and how long between the following; zero is never. timerfd_settime(2)."""

    it_interval: timespec
    it_value: timespec


@syscall(x86_64=283, aarch64=85, riscv64=85)
def timerfd_create(clock: int, flags: int) -> int:
    """A timer that is off. timerfd_create(2)."""
    raise NotImplementedError


@syscall(x86_64=286, aarch64=86, riscv64=86)
def timerfd_settime(fd: int, flags: int, new: itimerspec, old: None) -> None:
    """Turn it on or off. timerfd_settime(2)."""


class Timer:
    """Goes off once, so many seconds after ``set``. Owns ``fd``, which does not block."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = timerfd_create(time.CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)

    def set(self, seconds: float) -> None:
        """Go off in so many seconds instead of before; at once for less than a nanosecond."""
        whole, rest = divmod(max(1, int(seconds * 1e9)), 10**9)
        timerfd_settime(
            self.fd, 0, itimerspec(it_interval=timespec(), it_value=timespec(tv_sec=whole, tv_nsec=rest)), None
        )

    def clear(self) -> None:
        """It was seen that it went off."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
