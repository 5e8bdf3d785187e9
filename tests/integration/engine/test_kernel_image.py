"""A machine's kernel out of an image: pulled, unpacked once, and nothing of this host's with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.engine import kernel_image
from mamushka.engine.engine import Engine
from mamushka.engine.settings import Settings
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.machine.boot import kernels
from mamushka.machine.boot.modules import Modules
from tests import registry as registries
from tests.images import Layout, build

pytestmark = [pytest.mark.root]
VERSION = "9.9.9-test"


def _kernel(root: str) -> None:
    """As a distribution with one /usr has it, and as a stranger would like it to be read."""
    tree = Path(root, "usr/lib/modules", VERSION)
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/a.ko:\nkernel/b.ko: kernel/a.ko\n")
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (tree / "kernel").mkdir()
    (tree / "kernel/a.ko").write_bytes(b"a module")
    (tree / "kernel/b.ko").symlink_to("/etc/shadow")
    (tree / "build").symlink_to("/usr/src")
    os.symlink("usr/lib", f"{root}/lib")
    os.mkdir(f"{root}/boot")
    Path(root, "boot", f"vmlinuz-{VERSION}").write_bytes(b"MZ a kernel")
    os.symlink("/etc/shadow", f"{root}/vmlinuz")


def _second_thoughts(root: str) -> None:
    Path(root, "usr/lib/modules", VERSION, "kernel/a.ko").write_bytes(b"a better one")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return build(str(tmp_path_factory.mktemp("kernels")), "kernel", [_kernel, _second_thoughts])


@pytest.fixture(scope="module")
def reference(registry: str, layout: Layout) -> str:
    return registries.push(layout, f"{registry}/kernels/test:9")


def test_it_is_pulled_and_unpacked_once(engine: Engine, reference: str) -> None:
    place = kernel_image.place(engine, reference)
    assert Path(place, "boot", f"vmlinuz-{VERSION}").read_bytes() == b"MZ a kernel"
    tree = Path(place, "lib/modules", VERSION)
    assert (tree / "kernel/a.ko").read_bytes() == b"a better one"
    assert not [path for path in Path(place).rglob("*") if path.is_symlink()]
    assert not Path(place, "usr").exists(), "twice the same"
    found = kernels.in_directory(place)
    assert (found.version, found.modules) == (VERSION, str(tree))
    written = tree.stat().st_mtime_ns
    assert kernel_image.place(engine, reference) == place and tree.stat().st_mtime_ns == written
    assert list(Path(engine.paths.staged).glob("*")) == []


def test_what_no_workload_names_is_pruned(engine: Engine, reference: str) -> None:
    place = kernel_image.place(engine, reference)
    assert engine.prune()[1] >= len(b"a better one")
    assert not os.path.exists(place)
    os.makedirs(f"{engine.paths.staged}/0123456789abcdef/kernel")  # who was killed while he unpacked one
    assert kernel_image.place(engine, reference) == place
    assert list(Path(engine.paths.staged).glob("*")) == []


def test_an_image_without_a_kernel(engine: Engine, busybox_reference: str) -> None:
    with pytest.raises(Unsupported, match="has no kernel"):
        kernel_image.place(engine, busybox_reference)
    assert not os.path.exists(f"{engine.paths.made}/kernels")


def test_a_name_that_leads_nowhere(engine: Engine, registry: str) -> None:
    with pytest.raises(NotFound):
        kernel_image.place(engine, f"{registry}/kernels/none:1")
    with pytest.raises(Invalid, match="no name"):
        kernel_image.place(engine, "")


@pytest.mark.parametrize("path", ["/etc/shadow", "../../../etc/shadow", "kernel/../../../etc/shadow"])
def test_no_index_leads_out_of_its_directory(tmp_path: Path, path: str) -> None:
    (tmp_path / "modules.dep").write_text(f"{path}:\n")
    with pytest.raises(Invalid, match="leads out"):
        Modules(str(tmp_path)).order(["shadow"])


def test_it_is_settled_when_a_workload_is_made(engine: Engine, reference: str) -> None:
    """What is written down is the place: a tag that moves later moves no workload."""
    given = Settings(image="host", annotations={"com.mamushka.machine.kernel": f"image:{reference}"}, runtime=("vm",))
    settled = kernel_image.settle(engine, given)
    assert settled.annotations["com.mamushka.machine.kernel"] == kernel_image.place(engine, reference)
    plain = Settings(image="host", annotations={"com.mamushka.machine.kernel": "/boot/vmlinuz"}, runtime=("vm",))
    assert kernel_image.settle(engine, plain) is plain
