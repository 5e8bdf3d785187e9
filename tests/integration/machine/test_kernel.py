"""Debian's own kernel package: its modules in the order that kmod gives, also without what depmod wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mamushka.machine.boot import kernels
from mamushka.machine.boot.modules import Modules, module_name
from tests.lab.kernel import Unavailable, default_cache, kernel

WANTED = ("virtio_mmio", "erofs", "overlay", "virtiofs", "vmw_vsock_virtio_transport", "nd_pmem", "virtio_net", "xfs",
          "btrfs", "nf_tables", "kvm-amd")  # fmt: skip


@pytest.fixture(scope="module")
def tree() -> str:
    """The root of an unpacked package."""
    try:
        return os.path.dirname(os.path.dirname(kernel(default_cache()).image))
    except Unavailable as error:
        pytest.skip(str(error))


def test_it_fits_and_lacks_nothing(tree: str) -> None:
    found = kernels.at(tree)
    assert found.missing == ()
    assert found.version == os.path.basename(found.modules)


@pytest.mark.skipif(shutil.which("modprobe", path="/usr/sbin:/sbin") is None, reason="needs modprobe (package kmod)")
@pytest.mark.parametrize("name", WANTED)
def test_modules_are_those_of_modprobe(tree: str, name: str) -> None:
    found = kernels.at(tree)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    said = subprocess.run(
        ["modprobe", "-d", tree, "-S", found.version, "--show-depends", name],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    theirs = [module_name(line.split()[1]) for line in said.stdout.splitlines() if line.startswith("insmod")]
    ours = [module_name(path) for path in Modules(found.modules).order([name])]
    # It also inserts implementations for particular processors, by a soft dependency that the generic one satisfies.
    assert set(ours) <= set(theirs)
    hard = {module_name(line) for line in _closure(found.modules, name)}
    assert hard <= set(ours)


def _closure(directory: str, name: str) -> set[str]:
    rows = dict(line.split(":", 1) for line in Path(f"{directory}/modules.dep").read_text().splitlines())
    path = next(path for path in rows if module_name(path) == module_name(name))
    return {path, *rows[path].split()}


@pytest.mark.parametrize("name", WANTED)
def test_modules_tell_what_they_need_where_depmod_did_not(tree: str, name: str, tmp_path: Path) -> None:
    directory = kernels.at(tree).modules
    (tmp_path / "modules.builtin").symlink_to(f"{directory}/modules.builtin")
    shutil.copytree(f"{directory}/kernel", tmp_path / "kernel", copy_function=os.symlink)
    asked, read = Modules(str(tmp_path)).order([name]), Modules(directory).order([name])
    assert set(asked) == set(read)
    names = [module_name(path) for path in asked]
    for path in asked:
        needs = [module_name(need) for need in _closure(directory, path)]
        assert all(names.index(need) <= names.index(module_name(path)) for need in needs)
