"""``make lab``: the tests that are marked for it; or any command in the machine: ``python -m tests.lab -- uname -a``.

With ``--systemd`` before the command, systemd is the machine's first process and the command a unit; alone it means
its tests, ``--machines`` those of virtual machines, and ``--long`` also those of them that take long, half an hour and
more. What a failed run
leaves, its console and for each failed test the report, the plan and the trace, stays in a directory that is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

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
    "machine/test_kernel_as_image.py", "machine/test_layers.py", "machine/test_machine_verbs.py",
    "machine/test_vm_network.py", "machine/test_warm.py",
    "oci/test_machine_callers.py", "walls/test_lives.py", "walls/test_loads.py", "walls/test_networks.py",
    "walls/test_verbs.py",
)  # fmt: skip
# More than so many that fail are no chance; so many machines of the lab are tried.
_AGAIN_MAX = 12
_MACHINES_MAX = 4
# A test may take ten minutes, and none does; so long nothing is said by a machine that stands still.
_SILENCE = 420.0
# What ``pytest -v`` says of a test.
_TOLD = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)
# The line by which pytest says that it has come to its end.
_CLOSED = re.compile(r"^=+ .+ in [\d.]+s.* =+$", re.MULTILINE)
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
    if words in (["--machines"], ["--long"]):
        return _machines(long=words == ["--long"])
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
            text = _text(path) if name.startswith("test_") and name.endswith(".py") else ""
            if f"pytest.mark.{mark}" in text or (mark == "lab" and "needs_linux" in text):
                found.append(os.path.relpath(path, HERE))
    return sorted(found)


def pytest(mark: str, files: list[str]) -> list[str]:
    """The command that runs a mark's tests in the machine."""
    return [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.lab.artefacts", "--color=no",
        f"--artefacts={ARTEFACTS}", "--timeout=600", "-m", mark, *files,
    ]  # fmt: skip


class Attempt(NamedTuple):
    """What became of one machine: its command's status, tests by what pytest said of them, and whether of all."""

    status: int
    failed: list[str]
    finished: list[str]
    whole: bool


def _machines(*, long: bool) -> int:
    """The tests of virtual machines, in as many machines of the lab as it takes, up to a few.

    A kernel that boots under two emulators, beside others, may take longer than anybody waits, and an emulator may lose
    its clock, so that all stands still, or end. Who has not finished goes on in a fresh machine; who has failed is
    tried once more there, and is named. Who fails twice fails.
    """
    rest = [path for path in files("lab") if path.startswith(MACHINES) and (long or not path.endswith(LONG))]
    again: list[str] = []
    for _ in range(_MACHINES_MAX):
        attempt = _attempt(shlex.join([*pytest("lab", [*again, *rest]), "-v"]), silence=_SILENCE)
        twice = [name for name in attempt.failed if name in again]
        if twice or len(attempt.failed) > _AGAIN_MAX:
            return attempt.status
        if attempt.whole and not attempt.failed:
            return attempt.status
        waiting = [name for name in again if name not in attempt.finished]
        begun = attempt.finished[-1].partition("::")[0] if attempt.finished else ""
        # From the file on in which it stood still: some of its tests run twice.
        rest = [] if attempt.whole else [path for path in rest if path >= begun or begun not in rest]
        again = [*attempt.failed, *waiting]
        print("lab: once more, or still to do:\n" + "\n".join(f"  {name}" for name in [*again, *rest]), flush=True)
    return 1


def _run(command: str, *, as_unit: bool) -> int:
    """One machine; its artefacts stay when the command failed."""
    return _attempt(command, as_unit=as_unit).status


def _attempt(command: str, *, as_unit: bool = False, silence: float = float("inf")) -> Attempt:
    runs = f"{default_cache()}/runs"
    artefacts = f"{runs}/{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}{'.systemd' if as_unit else ''}"
    os.makedirs(artefacts)
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root", "TMPDIR": SCRATCH}
    status = 1
    try:
        status = machine.run(
            command, directory=HERE, environment=environment, timeout=TIMEOUT, artefacts=artefacts, as_unit=as_unit,
            silence=silence,
        )  # fmt: skip
    except RuntimeError as error:
        print(f"lab: {error}", file=sys.stderr)
    finally:
        said = _text(f"{artefacts}/console.log")
        if status == 0:
            shutil.rmtree(artefacts)
    if status:
        _prune(runs)
        print(f"lab: failed ({status}); the console and what failed tests left:\n" + _listing(artefacts), flush=True)
    return outcome(status, said)


def outcome(status: int, said: str) -> Attempt:
    """What pytest told on a console, by the end of it."""
    told = _TOLD.findall(said)
    failed = dict.fromkeys(name for name, word in told if word in ("FAILED", "ERROR"))
    return Attempt(status, list(failed), [name for name, _ in told], bool(_CLOSED.search(said)))


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
