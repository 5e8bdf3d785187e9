"""What stands before a container's first instruction, counted: modules per door, instructions per filter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mamushka.container import seccomp
from mamushka.container.cgroups import devices
from mamushka.container.privileges import DEFAULT_CAPABILITIES
from mamushka.linux.abi import MACHINE
from mamushka.linux.libraries import LIBSECCOMP

# Each of them costs milliseconds, or pulls in one that does.
HEAVY = frozenset(
    ("_hashlib", "argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools",
     "hashlib", "inspect", "json", "logging", "pathlib", "re", "shutil", "socket", "ssl", "struct", "subprocess",
     "tempfile", "threading", "typing"),
)  # fmt: skip

# A door, and how many modules that are not ours it may bring.
DOORS = {
    "mamushka.container.cgroups": 4,
    "mamushka.container.seccomp, mamushka.container.profiles.calls": 7,
    "mamushka.container.privileges": 4,
    "mamushka.container.runtime, mamushka.container.creation": 8,
    "mamushka.interfaces.oci": 4,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_brings_few_modules_and_none_that_is_heavy(door: str) -> None:
    program = f"import sys; before = set(sys.modules); import {door}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    foreign = [name for name in done.stdout.split() if not name.startswith("mamushka")]
    assert not HEAVY & set(foreign), HEAVY & set(foreign)
    assert len(foreign) <= DOORS[door], foreign


def test_what_all_monitors_are_forked_from_is_small() -> None:
    """Threads cost it ``collections`` and ``functools``; saved states ``binascii``; nothing else of the heavy ones."""
    program = (
        "import sys; before = set(sys.modules); from mamushka.machine import maker; maker.preload();"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    foreign = {name for name in done.stdout.split() if not name.startswith("mamushka")}
    assert HEAVY & foreign <= {"collections", "functools", "struct", "threading"}
    assert len(foreign) <= 23, foreign


@pytest.mark.skipif(LIBSECCOMP.file() is None, reason="no libseccomp: apt-get install libseccomp2")
@pytest.mark.skipif(MACHINE != "x86_64", reason="the length is that of three architectures' filters")
def test_the_default_filter_stays_short() -> None:
    program = seccomp.compile(seccomp.default_profile(DEFAULT_CAPABILITIES), cache="")
    assert len(program) // 8 <= 800


def test_the_default_device_rules_stay_few() -> None:
    writes = devices.v1_writes(devices.policy(devices.DEFAULT))
    assert sum(len(texts) for _, texts in writes) <= 12
    assert len(devices.v2_program(devices.policy(devices.DEFAULT))) // 8 <= 80
