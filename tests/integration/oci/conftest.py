"""The command ``mamushka-oci`` as a caller has it: a state directory of its own, and a bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import peers

PROGRAM = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")


class Oci:
    """The command, or another runtime's, with a state directory of its own, and a bundle."""

    def __init__(self, state: str, bundle: str, program: str = PROGRAM) -> None:
        self.state, self.bundle, self.program = state, bundle, program

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [self.program, "--root", self.state, *arguments]
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=self.bundle, check=False, **options
        )

    def quietly(self, *arguments: str) -> int:
        """Without pipes, which a container that goes on would hold open."""
        null = subprocess.DEVNULL
        command = [self.program, "--root", self.state, *arguments]
        return subprocess.run(
            command, stdin=null, stdout=null, stderr=null, cwd=self.bundle, timeout=60, check=False
        ).returncode

    def edit(self, *args: str, **process: Any) -> None:
        """Change the bundle's program."""
        path = f"{self.bundle}/config.json"
        with open(path) as file:
            config = json.load(file)
        config["process"].update({"args": args, "terminal": False, **process})
        config["root"]["readonly"] = False
        with open(path, "w") as file:
            json.dump(config, file)


@pytest.fixture
def oci(tmp_path: Any) -> Iterator[Oci]:
    """A bundle with busybox, its config by ``spec``."""
    peers.need_root()
    peers.need("busybox")
    bundle = tmp_path / "bundle"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(peers.find("busybox"), bundle / "rootfs" / "bin" / "busybox")
    for name in ("sh", "true", "sleep", "cat", "echo", "tty", "stty"):
        (bundle / "rootfs" / "bin" / name).symlink_to("busybox")
    made = Oci(str(tmp_path / "state"), str(bundle))
    assert made("spec").returncode == 0
    made.edit("true")
    yield made
    for name in made("list", "-q").stdout.split():
        made("delete", "--force", name)
