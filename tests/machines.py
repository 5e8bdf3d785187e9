"""Programs for other machines than this one, performed by qemu's user emulation."""

from __future__ import annotations

import os
import shutil

import pytest

HERE = os.uname().machine
ALL = ("x86_64", "aarch64", "riscv64")


def emulator(machine: str) -> list[str]:
    """Words to put before a program for that machine; nothing for this one. Skips where there is no emulator."""
    if machine == HERE:
        return []
    program = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if program is None:
        pytest.skip(f"qemu-{machine} is missing (Debian: qemu-user-static)")
    return [program]
