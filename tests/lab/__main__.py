"""``make lab``: the tests that are marked for it; or any command in the machine: ``python -m tests.lab -- uname -a``.

With ``--systemd`` before the command, systemd is the machine's first process and the command a unit; alone it means
its tests, ``--machines`` those of virtual machines, and ``--long`` also those of them that take long, half an hour and
more. What a failed run
leaves, its console and for each failed test the report, the plan and the trace, stays in a directory that is named.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from tests.lab import machine
from tests.lab.initramfs import ARTEFACTS, SCRATCH
from tests.lab.kernel import Unavailable, default_cache, kernel

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TIMEOUT = 3000.0
# Where the tests of virtual machines lie: below them kernels boot, each a machine in the machine.
MACHINES = ("tests/integration/machine/", "tests/integration/walls/", "tests/integration/oci/test_machine_callers.py")
# Those of them that take minutes each, or compare much: ``make lab-long``.
LONG = (
    "machine/test_clones.py", "machine/test_gdb.py", "machine/test_guest_boot.py", "machine/test_large.py",
    "machine/test_layers.py", "machine/test_machine_verbs.py", "machine/test_vm_network.py", "machine/test_warm.py",
    "oci/test_machine_callers.py", "walls/test_loads.py", "walls/test_networks.py", "walls/test_settings.py",
    "walls/test_verbs.py",
)  # fmt: skip
# More than so many that fail are no chance.
_AGAIN_MAX = 12
# Failed runs whose artefacts are kept; the older go.
_RUNS_MAX = 5


def main(words: list[str]) -> int:
    lacking = machine.missing() or without_kernel()
    if lacking:
        print(f"lab: skipped: {lacking}", file=sys.stderr)
        return 0
    as_unit = words[:1] == ["--systemd"]
    given = words[as_unit:]
    given = given[1:] if given[:1] == ["--"] else given
    if words == ["--machines"]:
        return _run(
            shlex.join(pytest("lab", [path for path in files("lab") if path.startswith(MACHINES)])), as_unit=False
        )
    if given:
        return _run(shlex.join(given), as_unit=as_unit)
    if as_unit:
        return _run(shlex.join(pytest("systemd", files("systemd"))), as_unit=True)
    # Two at once: neither keeps all of two processors busy. The second's console is shown when it has ended.
    with tempfile.TemporaryFile("w+") as console:
        beside = shlex.join([sys.executable, "-m", "tests.lab"])
        other = subprocess.Popen(
            ["/bin/sh", "-c", f"{beside} --systemd; first=$?; {beside} --machines && exit $first"],
            cwd=HERE, stdout=console, stderr=console,
        )  # fmt: skip
        try:
            plain = [path for path in files("lab") if not path.startswith(MACHINES)]
            status = _run(shlex.join(pytest("lab", plain)), as_unit=False)
        finally:
            status_of_other = other.wait()
            console.seek(0)
            print(console.read(), flush=True)
    return status or status_of_other


def files(mark: str) -> list[str]:
    """The files with tests of a mark; only they are given to pytest, because collecting is slow under emulation."""
    found = []
    for directory, _, names in os.walk(f"{HERE}/tests/integration"):
        for name in names:
            path = f"{directory}/{name}"
            if name.endswith(".py") and f"pytest.mark.{mark}" in _text(path):
                found.append(os.path.relpath(path, HERE))
    return sorted(found)


def pytest(mark: str, files: list[str]) -> list[str]:
    """The command that runs a mark's tests in the machine."""
    return [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.lab.artefacts", "--color=no",
        f"--artefacts={ARTEFACTS}", "--timeout=600", "-m", mark, *files,
    ]  # fmt: skip


def _machines(*, long: bool) -> int:
    """The tests of virtual machines. Who fails is tried once more in a fresh machine of the lab, and is named.

    A kernel that boots under two emulators, beside others, may take longer than anybody waits. Who fails twice fails.
    """
    failed: list[str] = []
    tests = [path for path in files("lab") if path.startswith(MACHINES) and (long or not path.endswith(LONG))]
    status = _run(shlex.join(pytest("lab", tests)), as_unit=False, failed=failed)
    if not status or not 0 < len(failed) <= _AGAIN_MAX:
        return status
    print("lab: once more, alone:\n" + "\n".join(f"  {name}" for name in failed), flush=True)
    return _run(shlex.join(pytest("lab", failed)), as_unit=False)


def _run(command: str, *, as_unit: bool, failed: list[str] | None = None) -> int:
    """One machine; its artefacts stay when the command failed. ``failed`` is filled with the tests that did."""
    runs = f"{default_cache()}/runs"
    artefacts = f"{runs}/{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}{'.systemd' if as_unit else ''}"
    os.makedirs(artefacts)
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root", "TMPDIR": SCRATCH}
    status = 1
    try:
        status = machine.run(
            command, directory=HERE, environment=environment, timeout=TIMEOUT, artefacts=artefacts, as_unit=as_unit
        )
    except RuntimeError as error:
        print(f"lab: {error}", file=sys.stderr)
    finally:
        if status == 0:
            shutil.rmtree(artefacts)
    if status:
        if failed is not None:
            failed += _failed(artefacts)
        _prune(runs)
        print(f"lab: failed ({status}); the console and what failed tests left:\n" + _listing(artefacts), flush=True)
    return status


def _failed(artefacts: str) -> list[str]:
    """The tests that left something: the first line of each report names one."""
    reports = [f"{artefacts}/{name}/report.txt" for name in sorted(os.listdir(artefacts))]
    return list(dict.fromkeys(_text(path).partition("\n")[0] for path in reports if os.path.exists(path)))


def _listing(artefacts: str) -> str:
    paths = [f"{directory}/{name}" for directory, _, names in os.walk(artefacts) for name in names]
    return "\n".join(f"  {path}" for path in sorted(paths))


def _prune(runs: str) -> None:
    for name in sorted(os.listdir(runs))[:-_RUNS_MAX]:
        shutil.rmtree(f"{runs}/{name}", ignore_errors=True)


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        return file.read()
    return ""


def without_kernel() -> str:
    """Why there is no kernel for it, as a sentence; empty where there is one."""
    try:
        kernel(default_cache())
    except Unavailable as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
