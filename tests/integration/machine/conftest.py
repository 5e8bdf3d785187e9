"""The agent, built once for all tests of a session: as it is shipped, and with sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.container.cgroups import prune
from mamushka.guest import build
from tests import peers
from tests.guests import Guest, make_root
from tests.integration.machine.linux_guest import KERNEL, need_machines


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For this machine, from the source as it is now."""
    if not build.compiler(platform.machine()):
        pytest.skip("no compiler: pip install ziglang")
    return build.build(platform.machine(), str(tmp_path_factory.mktemp("guest")))


@pytest.fixture(scope="session")
def checked_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With gcc's sanitizers, which end it with a report at the first wrong access."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is missing: apt-get install gcc")
    program = str(tmp_path_factory.mktemp("checked") / "init")
    words = [
        "gcc",
        "-std=gnu11",
        "-g",
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-o",
        program,
    ]
    done = subprocess.run([*words, *build.sources()], cwd=build.HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no sanitizers here: {done.stderr[-200:]}")
    return program


@pytest.fixture
def guest(agent_program: str, tmp_path: Path) -> Iterator[Guest]:
    peers.need_root()
    peers.need("busybox")
    with Guest(agent_program, make_root(str(tmp_path / "rootfs"))) as made:
        yield made
    assert made.faults == []
    assert not os.path.exists(made.agent.channel.cgroups) or not made.agent.channel.cgroups


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images can be run in machines, with the lab's kernel; a skip where they cannot."""
    need_machines()
    monkeypatch.setenv("MAMUSHKA_KERNEL", KERNEL)


@pytest.fixture(scope="module", autouse=True)
def _no_cgroup_is_left() -> Iterator[None]:
    """Above those of a module's machines."""
    yield
    if os.geteuid() == 0:
        prune("/mamushka-test")
