"""qcow2 images against QEMU's own programs: theirs read equal, ours pass their check and read equal there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.storage.block import create_raw, open_disk
from mamushka.storage.qcow2 import recount
from mamushka.storage.qcow2.create import create_qcow2
from tests.integration.storage.disks import check, content, img, io, needs_qemu, pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.storage.block import Disk

pytestmark = needs_qemu

SIZE = 3 * 1024 * 1024 + 512 * 7  # the last cluster is not whole


def read(disk: Disk, offset: int = 0, length: int = -1) -> bytes:
    data = bytearray(disk.size - offset if length < 0 else length)
    disk.readv(offset, [memoryview(data)])
    return bytes(data)


def write(disk: Disk, offset: int, data: bytes) -> None:
    disk.writev(offset, [memoryview(data)])


def whole(path: Path, kind: str = "qcow2") -> bytes:
    disk = open_disk(str(path), kind)
    try:
        return read(disk)
    finally:
        disk.close()


VARIANTS = (
    "compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4096", "cluster_size=2M", "refcount_bits=1",
    "refcount_bits=2", "refcount_bits=4", "refcount_bits=8", "refcount_bits=32", "refcount_bits=64",
    "lazy_refcounts=on", "preallocation=metadata", "preallocation=falloc", "preallocation=full",
    "compat=0.10,cluster_size=1024",
)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_of_qemu_reads_equal_and_takes_writes(tmp_path: Path, variant: str) -> None:
    path, raw = tmp_path / "image.qcow2", tmp_path / "raw"
    expected = bytearray(pattern(SIZE, 1))
    raw.write_bytes(expected)
    img("convert", "-f", "raw", "-O", "qcow2", "-o", variant, raw, path)
    assert whole(path) == expected
    disk = open_disk(str(path), "qcow2", writable=True)
    dice = random.Random(variant)
    for _ in range(60):
        start = dice.randrange(SIZE // 512) * 512
        data = dice.randbytes(min(512 * dice.randrange(1, 300), SIZE - start))
        write(disk, start, data)
        expected[start : start + len(data)] = data
    assert read(disk) == expected
    disk.close()
    check(path)
    assert content(path) == expected


@pytest.mark.parametrize("method", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
def test_compressed_clusters_are_read_and_written_over(tmp_path: Path, method: str, cluster: str) -> None:
    path, raw = tmp_path / "image.qcow2", tmp_path / "raw"
    expected = bytearray(pattern(SIZE, 2))
    raw.write_bytes(expected)
    img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={method},cluster_size={cluster}", raw, path)
    assert whole(path) == expected
    disk = open_disk(str(path), "qcow2", writable=True)
    for start in range(512, SIZE - 1024, 200 * 1024 // 512 * 512):
        write(disk, start, b"new!" * 256)
        expected[start : start + 1024] = b"new!" * 256
    disk.discard(1 << 20, 1 << 20)
    assert read(disk, 0, 1 << 20) == expected[: 1 << 20]
    disk.close()
    check(path)
    after = content(path)
    assert after[: 1 << 20] == expected[: 1 << 20]
    assert after[2 << 20 :] == expected[2 << 20 :]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_what_the_top_has_not_comes_from_the_backing_file(tmp_path: Path, kind: str, compat: str) -> None:
    base, raw, path = tmp_path / "base", tmp_path / "raw", tmp_path / "top"
    expected = bytearray(pattern(SIZE, 3))
    raw.write_bytes(expected)
    img("convert", "-f", "raw", "-O", kind, raw, base)
    before = base.read_bytes()
    img("create", "-f", "qcow2", "-o", f"compat={compat}", "-b", "base", "-F", kind, path, str(SIZE + (1 << 20)))
    expected += bytes(1 << 20)
    io(path, "write -P 7 65k 100k", "write -z 1M 64k" if compat == "1.1" else "write -P 0 1M 64k")
    expected[65 << 10 : 165 << 10] = b"\7" * (100 << 10)
    expected[1 << 20 : (1 << 20) + (64 << 10)] = bytes(64 << 10)
    assert whole(path) == expected
    disk = open_disk(str(path), "qcow2", writable=True)
    for start in (0, 512, 700 * 1024, SIZE - 512, SIZE, SIZE + (1 << 20) - 512):
        write(disk, start, b"x" * 512)
        expected[start : start + 512] = b"x" * 512
    disk.write_zeroes(2 << 20, 300 << 10, True)
    expected[2 << 20 : (2 << 20) + (300 << 10)] = bytes(300 << 10)
    assert read(disk) == expected
    disk.close()
    check(path)
    assert content(path) == expected
    assert base.read_bytes() == before


def test_internal_snapshots_stay_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    img("create", "-f", "qcow2", path, "64M")
    io(path, "write -P 1 0 3M", "write -P 2 40M 1M")
    img("snapshot", "-c", "before", path)
    first = content(path)
    disk = open_disk(str(path), "qcow2", writable=True)
    write(disk, 1 << 20, b"n" * 70000 * 4)
    disk.discard(40 << 20, 1 << 20)
    disk.flush()
    write(disk, 41 << 20, b"m" * 512)
    mine = read(disk)
    disk.close()
    check(path)
    assert content(path) == mine != first
    img("snapshot", "-a", "before", path)
    check(path)
    assert content(path) == first
    disk = open_disk(str(path), "qcow2", writable=True)
    write(disk, 0, b"again" * 1024)
    disk.close()
    img("snapshot", "-d", "before", path)
    check(path)


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize(("version", "order"), [(2, 4), (3, 0), (3, 4), (3, 6)])
def test_a_new_image_is_one(tmp_path: Path, bits: int, version: int, order: int) -> None:
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), 60 << 20, cluster_bits=bits, version=version, refcount_order=order)
    check(path)
    assert not any(content(path))
    disk = open_disk(str(path), "qcow2", writable=True)
    expected = pattern(20 << 20, bits)
    for start in range(0, len(expected), 1 << 20):
        write(disk, (5 << 20) + start, expected[start : start + (1 << 20)])
    disk.close()
    check(path)
    assert content(path)[5 << 20 : 25 << 20] == expected


def test_many_clusters_make_the_table_of_counts_grow(tmp_path: Path) -> None:
    """With 512-byte clusters and 64-bit counts one cluster of the table counts 2 MiB: it grows several times."""
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), 64 << 20, cluster_bits=9, refcount_order=6)
    disk = open_disk(str(path), "qcow2", writable=True)
    block = os.urandom(1 << 20)
    for start in range(0, 40 << 20, 1 << 20):
        write(disk, start, block)
    disk.close()
    check(path)
    assert content(path)[: 40 << 20] == block * 40


def test_discard_gives_space_back(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), 1 << 30)
    disk = open_disk(str(path), "qcow2", writable=True)
    for start in range(0, 32 << 20, 1 << 20):
        write(disk, start, os.urandom(1 << 20))
    disk.flush()
    full = os.stat(path).st_blocks * 512
    disk.discard(0, 1 << 30)
    disk.flush()
    assert full > 32 << 20
    assert os.stat(path).st_blocks * 512 < 1 << 20
    write(disk, 0, b"a" * 4096)  # a cluster that was used before
    assert read(disk, 0, 1 << 20) == b"a" * 4096 + bytes((1 << 20) - 4096)
    for start in range(0, 32 << 20, 1 << 20):
        write(disk, start, b"b" * (1 << 20))
    disk.close()
    check(path)
    assert os.path.getsize(path) < 40 << 20, "freed clusters are not used again"


def test_an_image_with_a_backing_file_is_made(tmp_path: Path) -> None:
    create_raw(str(tmp_path / "base"), 1 << 20)
    (tmp_path / "base").write_bytes(pattern(1 << 20, 5))
    create_qcow2(str(tmp_path / "top"), 0, backing="base", backing_format="raw")
    assert whole(tmp_path / "top") == content(tmp_path / "top") == pattern(1 << 20, 5)
    check(tmp_path / "top")


def test_bitmaps_are_not_claimed_to_be_true_any_more(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    img("create", "-f", "qcow2", path, "1M")
    img("bitmap", "--add", path, "one")
    disk = open_disk(str(path), "qcow2", writable=True)
    write(disk, 0, b"x" * 512)
    disk.close()
    check(path, leaks=True)
    assert path.read_bytes()[88:96] == bytes(8)


def test_features_we_lack_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    img("create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", path, "1M")
    with pytest.raises(Unsupported, match="extended L2 entries"):
        open_disk(str(path), "qcow2")
    path.unlink()
    img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, "1M")
    with pytest.raises(Unsupported, match="external data file"):
        open_disk(str(path), "qcow2")
    path.unlink()
    create_qcow2(str(path), 1 << 20)
    with path.open("r+b") as file:
        file.seek(35)  # the last byte of crypt_method: 2 is LUKS
        file.write(b"\2")
    with pytest.raises(Unsupported, match="encrypted"):
        open_disk(str(path), "qcow2")


def test_an_image_marked_as_corrupt_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), 1 << 20)
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\2")
    assert whole(path) == bytes(1 << 20)
    with pytest.raises(Invalid, match="corrupt"):
        open_disk(str(path), "qcow2", writable=True)


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_image_of_a_qemu_that_counts_lazily_and_was_killed_is_counted_anew(tmp_path: Path, snapshot: bool) -> None:
    path = tmp_path / "image.qcow2"
    img("create", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4096", path, "4M")
    if snapshot:
        io(path, "write -P 1 0 1M")
        img("snapshot", "-c", "kept", path)
    qemu = subprocess.Popen(["qemu-io", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    for command in (b"write -P 5 512k 2M", b"flush"):
        qemu.stdin.write(command + b"\n")
        qemu.stdin.flush()
        time.sleep(0.5)  # qemu-io says nothing of a flush
    qemu.kill()
    qemu.communicate()
    assert path.read_bytes()[79] & 1, "it is dirty"
    before = whole(path)
    assert subprocess.run(["qemu-img", "check", path], capture_output=True, check=False).returncode == 2
    disk = open_disk(str(path), "qcow2", writable=True)
    write(disk, 0, b"x" * 8192)
    assert read(disk) == b"x" * 8192 + before[8192:]
    disk.close()
    check(path, leaks=True)
    assert not path.read_bytes()[79] & 1
    assert content(path) == b"x" * 8192 + before[8192:]


def test_an_image_to_be_counted_anew_that_claims_too_much_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), SIZE)
    disk = open_disk(str(path), "qcow2", writable=True)
    write(disk, 0, b"x" * SIZE)
    disk.close()
    raw = bytearray(path.read_bytes())
    raw[79] |= 1
    path.write_bytes(raw)
    monkeypatch.setattr(recount, "_CLUSTERS_MAX", 4)
    with pytest.raises(Invalid, match="clusters to count"):
        open_disk(str(path), "qcow2", writable=True)
    monkeypatch.undo()
    assert read(open_disk(str(path), "qcow2", writable=True)) == b"x" * SIZE


def test_backing_files_are_confined(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    create_raw(str(tmp_path / "secret"), 1 << 20)
    (inner / "link").symlink_to("../secret")
    for name in ("../secret", str(tmp_path / "secret"), "link"):
        img("create", "-f", "qcow2", "-b", name, "-F", "raw", inner / "top")
        with pytest.raises(Invalid, match="leads out of"):
            open_disk(str(inner / "top"), "qcow2")
        disk = open_disk(str(inner / "top"), "qcow2", within=str(tmp_path))
        assert disk.size == 1 << 20
        disk.close()
    img("rebase", "-u", "-f", "qcow2", "-b", "link", "-F", "vmdk", inner / "top")
    with pytest.raises(Unsupported, match="vmdk"):
        open_disk(str(inner / "top"), "qcow2")
    img("rebase", "-u", "-f", "qcow2", "-b", "nbd:localhost:1", "-F", "raw", inner / "top")
    with pytest.raises(Unsupported, match="no path"):
        open_disk(str(inner / "top"), "qcow2")


def test_a_chain_that_bites_its_tail_is_refused(tmp_path: Path) -> None:
    create_qcow2(str(tmp_path / "a"), 1 << 20)
    create_qcow2(str(tmp_path / "b"), 1 << 20, backing="a", backing_format="qcow2")
    img("rebase", "-u", "-f", "qcow2", "-b", "b", "-F", "qcow2", tmp_path / "a")
    with pytest.raises(Invalid, match="below each other"):
        open_disk(str(tmp_path / "a"), "qcow2")


def test_an_image_is_written_by_one_alone_also_among_qemus_programs(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    create_qcow2(str(path), 1 << 20)
    disk = open_disk(str(path), "qcow2", writable=True)
    for writable in (False, True):
        with pytest.raises(Conflict, match="in use"):
            open_disk(str(path), "qcow2", writable=writable)
    refused = subprocess.run(["qemu-io", "-c", "write 0 512", path], capture_output=True, text=True, check=False)
    assert "lock" in refused.stderr
    disk.close()
    readers = [open_disk(str(path), "qcow2") for _ in range(2)]
    refused = subprocess.run(["qemu-io", "-c", "write 0 512", path], capture_output=True, text=True, check=False)
    assert "lock" in refused.stderr
    img("info", path)
    for reader in readers:
        reader.close()
    qemu = subprocess.Popen(["qemu-io", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    qemu.stdin.write(b"write 0 512\n")
    qemu.stdin.flush()
    while b"wrote" not in qemu.stdout.readline():
        pass
    with pytest.raises(Conflict, match="in use"):
        open_disk(str(path), "qcow2", writable=True)
    qemu.communicate(b"quit\n")


WRITER = """
import random, sys
from mamushka.storage.block import open_disk
dice = random.Random(int(sys.argv[2]))
disk = open_disk(sys.argv[1], "qcow2", writable=True)
print("ready", flush=True)
while True:
    start = dice.randrange(disk.size // 512 - 400) * 512
    length = dice.randrange(1, 400) * 512
    match dice.randrange(8):
        case 0: disk.discard(start, length)
        case 1: disk.write_zeroes(start, length, dice.random() < 0.5)
        case 2: disk.flush()
        case _: disk.writev(start, [memoryview(bytes((dice.randrange(1, 256),)) * length)])
"""


@pytest.mark.parametrize("seed", range(12))
def test_an_image_is_whole_whenever_its_writer_is_killed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "image.qcow2"
    dice = random.Random(seed)
    img("create", "-f", "qcow2", "-o", f"cluster_size={dice.choice((512, 4096, 65536))}", path, "16M")
    io(path, "write -P 1 0 8M")
    img("snapshot", "-c", "kept", path)
    before = content(path)
    for life in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, f"{seed}{life}"], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            writer.wait(dice.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        check(path, leaks=True)
    img("snapshot", "-a", "kept", path)
    check(path, leaks=True)
    assert content(path) == before
