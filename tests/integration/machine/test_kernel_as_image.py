"""A machine boots a kernel that came as an image. What else there is to it: engine/test_kernel_image.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.machine.boot import kernels
from tests import registry as registries
from tests.images import build
from tests.integration.machine.linux_guest import KERNEL, need_machines

pytestmark = [pytest.mark.root]


@pytest.mark.lab
@pytest.mark.slow
def test_a_machine_boots_it(
    mamushka: Callable[..., subprocess.CompletedProcess[bytes]], registry: str,
    tmp_path: Path, busybox_reference: str,
) -> None:  # fmt: skip
    need_machines()

    def whole(root: str) -> None:
        subprocess.run(["cp", "-r", f"{KERNEL}/.", root], check=True)

    name = registries.push(build(str(tmp_path), "real", [whole]), f"{registry}/kernels/real:1")
    done = mamushka("run", "--rm", "--runtime", "vm", "--kernel", f"image:{name}", "--network", "none",
                    busybox_reference, "uname", "-r")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == kernels.at(str(KERNEL)).version
