"""A newcomer's first minutes: clone, then the README's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.slow]

HERE = Path(__file__).resolve().parents[3]


def test_the_readmes_first_command_runs_a_container(tmp_path: Path, on_the_hosts_network: list[str]) -> None:
    peers.need("git", "make")
    clone = tmp_path / "mamushka"
    peers.run("git", "clone", "--quiet", str(HERE), str(clone))
    commands = re.findall(r"^\$ (make \w+)$", (clone / "README.md").read_text(), re.M)
    assert commands[0] == "make run"
    # The interpreter of these tests; a newcomer's is found by .ci/python.
    make = ["make", "-s", "run", f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"]
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    done = subprocess.run(
        [*on_the_hosts_network, *make],
        cwd=clone, capture_output=True, text=True, check=False, timeout=280, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("Linux ")
    assert "runtime=container" in done.stderr
    assert (clone / ".venv/bin/mamushka").exists()
