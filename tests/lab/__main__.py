"""``make lab``: the tests that want the lab's kernel; or any command in it: ``python -m tests.lab -- uname -a``."""

from __future__ import annotations

import os
import shlex
import sys

from tests.lab import machine
from tests.lab.initramfs import SCRATCH
from tests.lab.kernel import Unavailable, default_cache, kernel

# What asks the kernel for much, on one that is older and has one hierarchy of cgroups. Under emulation a test takes ten
# times as long as outside.
TESTS = (
    "tests/integration/container/test_cgroups.py",
    "tests/integration/container/test_namespaces.py",
    "tests/integration/container/test_privileges.py",
    "tests/integration/container/test_filesystems.py",
    "tests/integration/container/test_landlock.py",
    "tests/integration/container/test_past_vulnerabilities.py",
    "tests/integration/storage/test_overlay.py",
    "tests/integration/end_to_end/test_commands.py",
    "tests/integration/audit/test_audit.py::test_the_default_box",
    "tests/integration/audit/test_doors.py::test_what_some_machines_have",
    "tests/integration/audit/test_doors.py::test_serial_numbers",
)
HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TIMEOUT = 1500.0


def main(words: list[str]) -> int:
    lacking = machine.missing() or _without_kernel()
    if lacking:
        print(f"lab: skipped: {lacking}", file=sys.stderr)
        return 0
    given = words[1:] if words[:1] == ["--"] else words
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=600", *TESTS]
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root", "TMPDIR": SCRATCH}
    return machine.run(shlex.join(given or tests), directory=HERE, environment=environment, timeout=TIMEOUT)


def _without_kernel() -> str:
    try:
        kernel(default_cache())
    except Unavailable as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
