"""A newcomer's first minutes: clone, then the README's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers

# Where a newcomer's images and workloads lie, since the README's commands name no other places.
ROOTS = ("/var/lib/mamushka", "/run/mamushka")

pytestmark = [pytest.mark.root, pytest.mark.slow]

HERE = Path(__file__).resolve().parents[3]


@pytest.fixture
def empty_roots() -> Iterator[list[str]]:
    """Words to put before a command that must find, and leave, nothing in the default places."""
    made = [root for root in ROOTS if not os.path.isdir(root)]
    for root in made:
        os.mkdir(root)
    cover = " && ".join(f"mount -t tmpfs tmpfs {root}" for root in ROOTS)
    yield ["unshare", "--mount", "sh", "-c", f'{cover} && exec "$@"', "sh"]
    for root in made:
        os.rmdir(root)


def test_the_readmes_first_command_runs_a_container(
    tmp_path: Path, on_the_hosts_network: list[str], empty_roots: list[str]
) -> None:
    peers.need("git", "make", "unshare")
    clone = tmp_path / "mamushka"
    peers.run("git", "clone", "--quiet", str(HERE), str(clone))
    commands = re.findall(r"^\$ (make \w+)$", (clone / "README.md").read_text(), re.M)
    assert commands[0] == "make run"
    # The interpreter of these tests; a newcomer's is found by .ci/python.
    make = ["make", "-s", "run", f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"]
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    done = subprocess.run(
        [*on_the_hosts_network, *empty_roots, *make],
        cwd=clone, capture_output=True, text=True, check=False, timeout=280, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("Linux ")
    assert "runtime=container" in done.stderr
    assert (clone / ".venv/bin/mamushka").exists()
