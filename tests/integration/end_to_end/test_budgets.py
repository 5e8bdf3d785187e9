"""Start-up budgets, counted and not timed: modules that a command imports, system calls that a container takes.

A budget is what was measured when it was set, and a tenth. Whoever breaks one has made every start slower; whoever
must raise one says why in the commit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mamushka.interfaces import oci as oci_package
from tests import images, peers

pytestmark = pytest.mark.root

BIN = os.path.dirname(sys.executable)
RUN_IMPORTS, OCI_IMPORTS = 138, 65
RUN_CALLS, OCI_CALLS = 2315, 1175
# Each costs milliseconds in front of every container (docs/decisions/0002-values.md).
HEAVY = {
    "argparse", "asyncio", "contextlib", "dataclasses", "inspect", "json", "logging", "pathlib", "shutil", "socket",
    "ssl", "subprocess", "tempfile", "threading", "typing", "urllib",
}  # fmt: skip


def imported(tmp_path: Path, *command: str) -> list[str]:
    """Modules that a program imports of itself, the interpreter's own start left out."""
    # The front of mamushka-oci starts the interpreter in this way, and lets nobody else say how.
    main = os.path.join(os.path.dirname(oci_package.__file__), "__main__.py")
    program = [main] if os.path.basename(command[0]) == "mamushka-oci" else [command[0]]
    words = [sys.executable, "-X", "importtime", *program, *command[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    bare = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", ""], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    names = [re.findall(r"^import time:.*\| +(\S+)$", text, re.M) for text in (done.stderr, bare.stderr)]
    return [name for name in names[0] if name not in set(names[1])]


def calls(tmp_path: Path, *command: str) -> int:
    """System calls of a program and all that it starts."""
    counts = tmp_path / "counts"
    peers.run("strace", "-f", "-c", "-o", str(counts), *command)
    total = re.search(r"^100\.00\s+\S+\s+(?:\d+\s+)?(\d+)\s+(?:\d+\s+)?total$", counts.read_text(), re.M)
    assert total, counts.read_text()
    return int(total[1])


@pytest.fixture
def run(roots: tuple[str, str]) -> list[str]:
    command = [f"{BIN}/mamushka", "--data-root", roots[0], "--run-root", roots[1]]
    words = [*command, "run", "--rm", "--network", "none", "host", "true"]
    subprocess.run(words, check=True)  # what is made once is made
    return words


@pytest.fixture
def oci(tmp_path: Path) -> list[str]:
    images.add_busybox(str(tmp_path / "rootfs"))
    subprocess.run([f"{BIN}/mamushka-oci", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"].update(terminal=False, args=["/bin/true"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = [f"{BIN}/mamushka-oci", "--root", str(tmp_path / "state"), "run", "--bundle", str(tmp_path), "budget"]
    subprocess.run(words, check=True)
    return words


def test_run_imports_no_more_than_it_needs(run: list[str], tmp_path: Path) -> None:
    found = imported(tmp_path, *run)
    assert not HEAVY & set(found), sorted(HEAVY & set(found))
    assert len(found) <= RUN_IMPORTS, f"{len(found)}: {found}"


def test_the_oci_command_imports_no_more_than_it_needs(oci: list[str], tmp_path: Path) -> None:
    found = imported(tmp_path, *oci)
    assert not HEAVY & set(found), sorted(HEAVY & set(found))
    assert "mamushka.container.creation" in found
    assert len(found) <= OCI_IMPORTS, f"{len(found)}: {found}"


@pytest.mark.peer
def test_a_container_takes_no_more_system_calls_than_it_needs(run: list[str], oci: list[str], tmp_path: Path) -> None:
    assert calls(tmp_path, *oci) <= OCI_CALLS
    assert calls(tmp_path, *run) <= RUN_CALLS
