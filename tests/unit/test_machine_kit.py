"""A guest's first file system: which modules are in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.machine import kit
from mamushka.machine.boot.kernels import Kernel

NEEDS = {"virtio_mmio": "virtio", "virtiofs": "fuse", "virtio_blk": "virtio", "erofs": "libcrc32c"}


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel that has some of what is wanted as modules."""
    directory = tmp_path / "modules"
    directory.mkdir()
    names = {*NEEDS, *NEEDS.values()}
    for name in names:
        (directory / f"{name}.ko").write_bytes(name.encode())
    rows = (f"{name}.ko: {NEEDS[name] + '.ko' if name in NEEDS else ''}" for name in sorted(names))
    (directory / "modules.dep").write_text("\n".join((*rows, "")))
    (directory / "modules.builtin").write_text("kernel/net/packet/af_packet.ko\n")
    return Kernel(str(tmp_path / "vmlinuz"), "6.1.0", str(directory))


def order(kernel: Kernel, init: Path, wanted: tuple[str, ...]) -> list[str]:
    members = {member.name: bytes(member.content) for member in kit.members(kernel, str(init), wanted)}
    found = members["modules/order"].decode().split()
    assert {name for name in members if name.endswith(".ko")} == {f"modules/{name}" for name in found}
    return found


def test_a_shared_root_needs_no_modules_for_disks(kernel: Kernel, tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(b"program")
    assert order(kernel, init, kit.SHARED) == ["virtio.ko", "virtio_mmio.ko", "fuse.ko", "virtiofs.ko"]
    rest = ["virtio_blk.ko", "libcrc32c.ko", "erofs.ko"]
    assert order(kernel, init, kit.WANTED)[-3:] == rest


def test_archives_of_other_modules_are_others(kernel: Kernel, tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(b"program")
    cache = str(tmp_path / "cache")
    for wanted in (kit.SHARED, kit.WANTED, kit.SHARED):
        os.close(kit.initramfs(kernel, str(init), cache, wanted))
    assert len(os.listdir(cache)) == 2
