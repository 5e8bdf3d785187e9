"""Builds the guest's first process, ``init.MACHINE`` beside its source: static, stripped, the same bytes every time.

``python build.py [MACHINE…]``; without a machine this one, ``--all`` for all. The ziglang package has a compiler and
a C library for each; where it is not installed, this machine's own ``cc -static`` makes a larger program.
It imports nothing of ours, so that it can run before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MACHINES = ("x86_64", "aarch64", "riscv64")
FLAGS = (
    "-std=gnu11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Wno-gnu-variable-sized-type-not-at-end",
    "-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables", "-Wl,--gc-sections",
)  # fmt: skip
# What a program says of itself at its end: this, and the digest of its sources.
MARK = "\nmamushka-guest "


def sources(directory: str = HERE) -> list[str]:
    """In one order, whatever the directory's is."""
    return sorted(name for name in os.listdir(directory) if name.endswith(".c"))


def digest(directory: str = HERE) -> str:
    """Of all that a program is made of."""
    found = hashlib.sha256(" ".join(FLAGS).encode())
    for name in (*sources(directory), "guest.h"):
        with open(os.path.join(directory, name), "rb") as file:
            found.update(file.read())
    return found.hexdigest()


def compiler(machine: str) -> list[str]:
    """The command that compiles for a machine; empty where there is none."""
    found = subprocess.run([sys.executable, "-c", "import ziglang"], capture_output=True, check=False)
    if found.returncode == 0:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    own = shutil.which("cc") or shutil.which("gcc")
    return [own, "-Wno-unknown-warning-option"] if own and machine == platform.machine() else []


def build(machine: str, directory: str = HERE) -> str:
    """The path of the program; RuntimeError where no compiler is found, CalledProcessError where it fails."""
    command = compiler(machine)
    if not command:
        raise RuntimeError(f"no compiler for {machine} was found")
    made = os.path.join(directory, f"init.{machine}")
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        program = os.path.join(scratch, "init")
        # By relative names from here: no path of this host gets into the program.
        subprocess.run([*command, *FLAGS, "-o", program, *sources()], cwd=HERE, check=True)
        with open(program, "ab") as file:  # behind what is loaded
            file.write(f"{MARK}{digest()}".encode())
        os.replace(program, made)
    return made


def main(arguments: list[str]) -> int:
    """0 also where there is no compiler: the rest of the project works without."""
    for machine in MACHINES if "--all" in arguments else arguments or [platform.machine()]:
        try:
            made = build(machine)
        except RuntimeError as error:
            print(f"{error}: machines of this kind cannot be started", file=sys.stderr)
            print("\nhint: pip install ziglang, then python src/mamushka/guest/build.py", file=sys.stderr)
        else:
            print(f"{made}: {os.path.getsize(made)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
