"""What a guest finds first: cpio unpacks our archives, and modules come after what they need."""

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from mamushka.errors import Invalid, NotFound
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, archive, link, program
from mamushka.machine.boot.modules import Modules, module_name

CPIO = next(([*words] for words in (("cpio",), ("busybox", "cpio")) if shutil.which(words[0])), [])


@pytest.mark.skipif(not CPIO, reason="needs cpio or busybox")
def test_cpio_unpacks_what_was_written(tmp_path: Path) -> None:
    first = archive([program("init", b"#!/bin/true\n"), Member("a/b/c", content=b"12345"), link("a/l", "b/c")])
    subprocess.run([*CPIO, "-id"], cwd=tmp_path, input=first, check=True)
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/b/c").read_bytes() == b"12345"
    assert (tmp_path / "a/l").read_bytes() == b"12345"
    listed = subprocess.run([*CPIO, "-itv"], input=first, capture_output=True, check=True)
    assert [line.split()[0] for line in listed.stdout.decode().splitlines()] == [
        "-rwxr-xr-x", "drwxr-xr-x", "drwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["/init", "a/../b", "", "a//b", "n" * 5000, "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        archive([Member(name)])


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4_decompress.ko.gz kernel/lib/libcrc32c.ko\n"
        "kernel/lib/libcrc32c.ko:\n"
        "kernel/lib/lz4_decompress.ko.gz:\n"
        "kernel/crypto/crc32c_generic.ko:\n"
        "kernel/crypto/crc32c-intel.ko:\n"
        "kernel/v/vmw_vsock_virtio_transport.ko: kernel/v/vsock.ko kernel/v/common.ko kernel/v/virtio.ko\n"
        "kernel/v/vsock.ko:\n"
        "kernel/v/common.ko: kernel/v/vsock.ko\n"
        "kernel/v/virtio.ko:\n"
        "kernel/a.ko: kernel/b.ko\n"
        "kernel/b.ko: kernel/a.ko\n"
    )
    (tmp_path / "modules.softdep").write_text("# comment\nsoftdep libcrc32c pre: crc32c post: late\n")
    (tmp_path / "modules.alias").write_text("alias crc32c crc32c_intel\nalias crc32c crc32c_generic\n")
    (tmp_path / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    (tmp_path / "kernel/lib").mkdir(parents=True)
    return tmp_path


def test_each_comes_after_what_it_needs(modules: Path) -> None:
    order = Modules(str(modules)).order(["overlay", "erofs", "vmw-vsock-virtio-transport"])
    names = [module_name(path) for path in order]
    for before, after in (
        ("crc32c_generic", "libcrc32c"), ("libcrc32c", "erofs"), ("vsock", "common"),
        ("common", "vmw_vsock_virtio_transport"),
    ):  # fmt: skip
        assert names.index(before) < names.index(after)
    assert "crc32c_intel" not in names


def test_a_circle_ends(modules: Path) -> None:
    assert set(Modules(str(modules)).order(["a"])) == {"kernel/a.ko", "kernel/b.ko"}


def test_what_is_not_there_is_named(modules: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no module nonsense"):
        Modules(str(modules)).order(["nonsense"])
    with pytest.raises(NotFound, match=r"modules\.dep"):
        Modules(str(tmp_path / "kernel"))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bytes], ids=("gzip", "xz", "plain"))
def test_modules_are_unpacked_on_the_way(modules: Path, pack: "type[bytes]") -> None:
    (modules / "kernel/lib/m.ko.xz").write_bytes(pack(b"\x7fELF module"))
    assert Modules(str(modules)).read("kernel/lib/m.ko.xz") == b"\x7fELF module"


def test_zstd_modules_are_unpacked(modules: Path) -> None:
    zstd = pytest.importorskip("backports.zstd")
    (modules / "m.ko.zst").write_bytes(zstd.compress(b"\x7fELF module"))
    assert Modules(str(modules)).read("m.ko.zst") == b"\x7fELF module"


def test_a_broken_module_is_refused(modules: Path) -> None:
    (modules / "m.ko.xz").write_bytes(lzma.compress(bytes(5000))[:-20])
    with pytest.raises(Invalid, match=r"m\.ko\.xz"):
        Modules(str(modules)).read("m.ko.xz")


def test_the_command_line() -> None:
    line = command_line(["nokaslr"], init=["a"]).split()
    assert line[0] == b"console=ttyS0"
    assert line[-3:] == [b"nokaslr", b"--", b"a"]
    assert b"quiet" not in command_line(quiet=False)
    with pytest.raises(Invalid):
        command_line(["a\nb"])
