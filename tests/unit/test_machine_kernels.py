"""Choosing a kernel: the named one, or the newest that fits; and what is said where there is none."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from mamushka.errors import NotFound, Unsupported
from mamushka.machine.boot import kernels
from mamushka.machine.boot.kernels import FEATURES
from tests.unit.test_machine_linux import bzimage

EVERYTHING = tuple(module for wanted in FEATURES.values() for module in wanted)


def image(version: str = "") -> bytes:
    """A bzImage that tells its version."""
    raw = bytearray(bzimage())
    raw[0x20E:0x210] = (0x300).to_bytes(2, "little")
    text = f"{version} (builder@host) #1 SMP\0".encode()
    raw[0x500 : 0x500 + len(text)] = text
    return bytes(raw)


def modules(directory: Path, names: tuple[str, ...] = EVERYTHING) -> None:
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text("".join(f"kernel/{name.replace('_', '-')}.ko.xz:\n" for name in names))
    (directory / "modules.builtin").write_text("kernel/fs/ext4.ko\n")


def debian(root: Path, version: str, names: tuple[str, ...] = EVERYTHING) -> None:
    """As Debian installs one, or its package unpacks."""
    (root / "boot").mkdir(exist_ok=True)
    (root / f"boot/vmlinuz-{version}").write_bytes(image(version))
    modules(root / "lib/modules" / version, names)


def fedora(root: Path, version: str) -> None:
    """As Fedora does."""
    modules(root / "usr/lib/modules" / version)
    (root / "usr/lib/modules" / version / "vmlinuz").write_bytes(image(version))


def test_the_newest_that_fits_is_chosen(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-9-amd64")
    debian(tmp_path, "6.1.0-56-cloud-amd64")
    debian(tmp_path, "6.12.4+deb13-amd64", tuple(name for name in EVERYTHING if name != "overlay"))
    fedora(tmp_path, "5.14.0-1.el9")
    chosen = kernels.choose(root=str(tmp_path))
    assert chosen.version == "6.1.0-56-cloud-amd64"
    assert chosen.image == f"{tmp_path}/boot/vmlinuz-6.1.0-56-cloud-amd64"
    assert chosen.modules == f"{tmp_path}/lib/modules/6.1.0-56-cloud-amd64"
    assert chosen.missing == ()
    assert kernels.obstacle(root=str(tmp_path)) == ""
    fedora(tmp_path, "6.17.1-300.fc43.x86_64")
    assert kernels.choose(root=str(tmp_path)).image.endswith("/usr/lib/modules/6.17.1-300.fc43.x86_64/vmlinuz")


def test_what_is_named_comes_first(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-1-amd64")
    (tmp_path / "other").write_bytes(image("5.0"))
    named = kernels.choose(f"{tmp_path}/other", f"{tmp_path}/nowhere", root=str(tmp_path))
    assert (named.version, named.modules, named.fits) == ("5.0", "", True)
    assert kernels.choose("", f"{tmp_path}/other", root=str(tmp_path)) == named


def test_an_unpacked_package_and_an_artifact_can_be_named(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-1-amd64")
    assert kernels.at(str(tmp_path)).modules == f"{tmp_path}/lib/modules/6.1.0-1-amd64"
    assert kernels.at(f"{tmp_path}/boot/vmlinuz-6.1.0-1-amd64") == kernels.at(str(tmp_path))
    artifact = tmp_path / "artifact"
    modules(artifact / "modules")
    (artifact / "vmlinuz").write_bytes(image("6.6.1"))
    found = kernels.at(str(artifact))
    assert (found.image, found.version, found.modules) == (f"{artifact}/vmlinuz", "6.6.1", f"{artifact}/modules")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-1-amd64", tuple(name for name in EVERYTHING if name not in ("nd_pmem", "virtio_rng")))
    assert kernels.choose(root=str(tmp_path)).missing == ("pmem", "virtio-pmem", "rng")
    with pytest.raises(NotFound, match="no kernel"):
        kernels.at(str(tmp_path / "lib"))
    with pytest.raises(NotFound, match="there is no kernel"):
        kernels.at(str(tmp_path / "nothing"))


def test_one_without_any_root_file_system_does_not_fit(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-1-amd64", tuple(name for name in EVERYTHING if name not in ("erofs", "virtiofs")))
    with pytest.raises(Unsupported, match="lacks erofs, or virtiofs"):
        kernels.at(str(tmp_path))
    assert "none of 1 installed kernels" in kernels.obstacle(root=str(tmp_path))


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ('ID=ubuntu\nID_LIKE=debian\nVERSION="24.04"\n', "linux-image-virtual"),
        ("ID=debian\n", "linux-image-cloud-amd64"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "kernel-core"),
        ("", "--kernel"),
    ],
)
def test_the_package_of_the_distribution_is_named(tmp_path: Path, release: str, command: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(release)
    assert command in kernels.obstacle(root=str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_kernel_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-1-amd64")
    (tmp_path / "boot/vmlinuz-6.1.0-1-amd64").chmod(0)
    assert "not readable" in kernels.obstacle(root=str(tmp_path))


def test_versions_are_ordered_by_their_numbers() -> None:
    order = ["5.14.0-1.el9", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.12.4+deb13-amd64", "6.12.10"]
    assert max(order, key=kernels.newness) == order[-1]
    assert all(kernels.newness(older) < kernels.newness(newer) for older, newer in pairwise(order))
