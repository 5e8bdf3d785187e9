"""Kernels where distributions put them, with modules as those pack them: what is chosen, and what a guest is given."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.errors import NotFound
from mamushka.machine import kit
from mamushka.machine.boot import kernels
from tests.unit.test_machine_kernels import EVERYTHING, image

NEEDS = {"virtio_mmio": ("virtio_ring", "virtio"), "virtiofs": ("fuse",), "erofs": ("libcrc32c", "netfs")}
UBUNTU, FEDORA, ARCH, ALPINE, SUSE = (
    "6.8.0-45-generic", "6.11.4-301.fc41.x86_64", "6.12.1-arch1-1", "6.6.58-0-virt", "6.4.0-150600.21-default",
)  # fmt: skip


def zstd(content: bytes) -> bytes:
    return bytes(pytest.importorskip("backports.zstd").compress(content))


def content(name: str) -> bytes:
    return b"\x7fELF" + name.encode() * 100


def modules(directory: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    """A tree as depmod leaves it, some of it built in."""
    builtin = ("ext4", "virtio_blk")
    rows = []
    for name in (*EVERYTHING, *(further for needs in NEEDS.values() for further in needs)):
        if name in builtin:
            continue
        path = f"kernel/drivers/{name.replace('_', '-')}.ko{suffix}"
        needs = (f"kernel/drivers/{need.replace('_', '-')}.ko{suffix}" for need in NEEDS.get(name, ()))
        rows.append(f"{path}: {' '.join(needs)}".rstrip())
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(pack(content(name)))
    (directory / "modules.dep").write_text("\n".join([*rows, ""]))
    (directory / "modules.builtin").write_text("".join(f"kernel/fs/{name}.ko\n" for name in builtin))
    (directory / "modules.softdep").write_text("# Soft dependencies extracted from modules themselves.\n")


def ubuntu(root: Path) -> tuple[str, str]:
    """/lib leads to usr/lib; links to the newest and the one before; modules of a kernel that was removed."""
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{UBUNTU}").write_bytes(image(UBUNTU))
    (root / f"boot/vmlinuz-{UBUNTU}").chmod(0o600)
    (root / "boot/vmlinuz").symlink_to(f"vmlinuz-{UBUNTU}")
    (root / "boot/vmlinuz.old").symlink_to("vmlinuz-6.8.0-40-generic")
    (root / f"boot/initrd.img-{UBUNTU}").write_bytes(b"no kernel")
    (root / f"boot/System.map-{UBUNTU}").write_bytes(b"no kernel")
    (root / "usr/lib/modules/6.8.0-99-generic/kernel").mkdir(parents=True)
    modules(root / "usr/lib/modules" / UBUNTU, ".zst", zstd)
    return f"boot/vmlinuz-{UBUNTU}", f"lib/modules/{UBUNTU}"


def fedora(root: Path) -> tuple[str, str]:
    """The image among its modules, a copy in /boot, and one for rescue that has none."""
    tree = root / "usr/lib/modules" / FEDORA
    modules(tree, ".xz", lambda plain: lzma.compress(plain, check=lzma.CHECK_CRC32))
    (root / "lib").symlink_to("usr/lib")
    (tree / "vmlinuz").write_bytes(image(FEDORA))
    (tree / ".vmlinuz.hmac").write_bytes(b"sum")
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{FEDORA}").write_bytes(image(FEDORA))
    (root / "boot/vmlinuz-0-rescue-0123456789abcdef").write_bytes(image("6.9.0-1.fc41.x86_64"))
    return f"boot/vmlinuz-{FEDORA}", f"lib/modules/{FEDORA}"


def ostree(root: Path) -> tuple[str, str]:
    """Fedora's and others' whose /boot is another's business."""
    tree = root / "usr/lib/modules" / FEDORA
    modules(tree, ".zst", zstd)
    (tree / "vmlinuz").write_bytes(image(FEDORA))
    return f"usr/lib/modules/{FEDORA}/vmlinuz", f"usr/lib/modules/{FEDORA}"


def arch(root: Path) -> tuple[str, str]:
    """An image that is called after its package."""
    tree = root / "usr/lib/modules" / ARCH
    modules(tree, ".zst", zstd)
    (tree / "vmlinuz").write_bytes(image(ARCH))
    (tree / "pkgbase").write_text("linux\n")
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-linux").write_bytes(image(ARCH))
    return "boot/vmlinuz-linux", f"usr/lib/modules/{ARCH}"


def alpine(root: Path) -> tuple[str, str]:
    """An image that is called after its flavour, and nothing among the modules."""
    modules(root / "lib/modules" / ALPINE, ".gz", gzip.compress)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-virt").write_bytes(image(ALPINE))
    return "boot/vmlinuz-virt", f"lib/modules/{ALPINE}"


def suse(root: Path) -> tuple[str, str]:
    """The image among its modules, and a link to it in /boot."""
    tree = root / "usr/lib/modules" / SUSE
    modules(tree, ".zst", zstd)
    (tree / "vmlinuz").write_bytes(image(SUSE))
    (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{SUSE}").symlink_to(f"../usr/lib/modules/{SUSE}/vmlinuz")
    return f"boot/vmlinuz-{SUSE}", f"lib/modules/{SUSE}"


EVERY = pytest.mark.parametrize("distribution", [ubuntu, fedora, ostree, arch, alpine, suse])


@EVERY
def test_its_kernel_is_found_and_fits(tmp_path: Path, distribution: Callable[[Path], tuple[str, str]]) -> None:
    expected, tree = distribution(tmp_path)
    found = kernels.choose(root=str(tmp_path))
    assert found.image == f"{tmp_path}/{expected}" and found.missing == ()
    assert os.path.realpath(found.modules) == os.path.realpath(tmp_path / tree)
    assert found.version == os.path.basename(tree)


@EVERY
def test_its_modules_come_unpacked_and_in_order(
    tmp_path: Path, distribution: Callable[[Path], tuple[str, str]]
) -> None:
    distribution(tmp_path)
    init = tmp_path / "init"
    init.write_bytes(b"program")
    members = {item.name: bytes(item.content) for item in kit.members(kernels.choose(root=str(tmp_path)), str(init))}
    order = members["modules/order"].decode().split()
    for name, needs in NEEDS.items():
        assert all(order.index(f"{need}.ko") < order.index(f"{name}.ko") for need in needs)
    assert "ext4.ko" not in order and "virtio_blk.ko" not in order  # built in
    for name in order:
        assert members[f"modules/{name}"] == content(name.removesuffix(".ko"))


def test_an_image_without_its_modules_is_none(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-linux").write_bytes(image(ARCH))
    (tmp_path / f"usr/lib/modules/{UBUNTU}").mkdir(parents=True)
    with pytest.raises(NotFound):
        kernels.choose(root=str(tmp_path))
