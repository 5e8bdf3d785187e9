"""Linux on our disks: a file system, fio's verification, discards that free, and a sequential read, counted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mamushka.machine.devices.virtio.block import Block
from mamushka.storage.block import create_raw, open_disk
from mamushka.storage.qcow2.create import create_qcow2
from tests.integration.machine.linux_guest import linux, needs_linux
from tests.integration.storage.disks import check, img

MIB = 1 << 20
TOOLS = ("/usr/bin/fio", "/sbin/mke2fs", "/sbin/fstrim")


pytestmark = [
    *needs_linux,
    pytest.mark.skipif(not all(map(os.path.exists, TOOLS)), reason="needs fio, e2fsprogs and util-linux"),
]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A disk with programs of this host's and their libraries, to be mounted and changed into."""
    top = tmp_path_factory.mktemp("tools")
    root = top / "root"
    files = set(TOOLS)
    for tool in TOOLS:
        said = subprocess.run(["ldd", tool], capture_output=True, text=True, check=True).stdout
        files |= set(re.findall(r"(/\S+) \(0x", said))
    for file in files:
        place = root / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), place)
    for name in ("dev", "proc", "mnt", "tmp", "etc"):
        (root / name).mkdir()
    (root / "etc/mtab").symlink_to("/proc/mounts")
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, top / "disk", "96M"], check=True
    )
    return str(top / "disk")


class Told:
    """What a guest's console said, how long it ran, and what came to this process."""

    def __init__(self) -> None:
        self.text, self.seconds = "", 0.0
        self.counts: dict[str, float] = {}
        self.exits: dict[str, int] = {}
        self.kernel: dict[str, int] = {}


def run(script: str, *disks: tuple[str, str, bool]) -> Told:
    """Boot, perform the script, switch off. Disks are (path, format, writable), vda and on."""
    blocks = {
        f"disk{number}": Block(open_disk(path, kind, writable=writable), name=str(number), serial=f"mamushka-{number}")
        for number, (path, kind, writable) in enumerate(disks)
    }
    told = Told()
    modules = ("virtio_blk", "ext4")
    with linux(f"mkdir /tools\n{script}", blocks, modules, memory=384 * MIB, words=("quiet",)) as guest:
        told.text, told.seconds = guest.finish(), guest.seconds
        told.counts = blocks["disk0"].counts()
        told.exits = guest.machine.exits[0]
        told.kernel = guest.machine.executor.counts()
    return told


WORK = """
mount -t ext4 -o ro /dev/vdb /tools || echo no tools
mount --bind /dev /tools/dev; mount -t proc p /tools/proc; mount -t tmpfs t /tools/tmp
chroot /tools /sbin/mke2fs -q -t ext4 -E nodiscard /dev/vda
mount -t ext4 /dev/vda /tools/mnt && echo mounted
chroot /tools /usr/bin/fio --name=v --directory=/mnt --size=8m --rw=randrw --bsrange=512-64k --bs_unaligned=0 \\
    --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --ioengine=psync --eta=never --output=/tmp/fio
echo fio ended $?
tail -3 /tools/tmp/fio
chroot /tools /usr/bin/fio --name=d --filename=/mnt/direct --size=3m --rw=randwrite --bs=4k --direct=1 --iodepth=16 \\
    --verify=crc32c --do_verify=1 --verify_fatal=1 --ioengine=psync --eta=never --output=/tmp/fio2
echo direct fio ended $?
dd if=/dev/zero bs=1M count=40 2>/dev/null | tr '\\0' x > /tools/mnt/big
sync; rm /tools/mnt/big /tools/mnt/v* /tools/mnt/direct; sync
echo kept > /tools/mnt/kept
chroot /tools /sbin/fstrim -v /mnt
umount /tools/mnt && echo unmounted
cat /sys/block/vda/serial; echo
for name in logical_block_size physical_block_size discard_max_bytes write_zeroes_max_bytes minimum_io_size; do
    echo $name $(cat /sys/block/vda/queue/$name)
done
"""


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_file_system_on_it_keeps_what_it_is_given_and_gives_space_back(kind: str, tools: str, tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    if kind == "raw":
        create_raw(path, 96 * MIB)
    else:
        create_qcow2(path, 96 * MIB)
    told = run(WORK, (path, kind, True), (tools, "raw", False))
    print(told.text, told.counts, told.exits, told.kernel, f"{told.seconds:.1f} s")
    for line in ("mounted", "fio ended 0", "direct fio ended 0", "unmounted", "mamushka-0"):
        assert line in told.text, told.text[-3000:]
    assert "physical_block_size 4096" in told.text
    assert told.counts["errors"] == 0
    assert told.counts["discard_requests"] > 0
    assert os.stat(path).st_blocks * 512 < 24 * MIB, "the 40 MiB that were deleted are still there"
    if kind == "qcow2":
        check(Path(path))
    img("convert", "-f", kind, "-O", "raw", path, tmp_path / "raw")
    subprocess.run(["/sbin/e2fsck", "-fn", tmp_path / "raw"], check=True)


READ = """
sync; echo start; dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2>&1 | tail -1; echo end
"""


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_sequential_read_costs_few_exits(kind: str, tmp_path: Path) -> None:
    size = int(os.environ.get("MAMUSHKA_TEST_READ_MIB", "64")) * MIB
    path = str(tmp_path / "disk")
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(b"\xa5" * MIB)
    if kind == "qcow2":
        img("convert", "-f", "raw", "-O", "qcow2", path, path + ".qcow2")
        path += ".qcow2"
    idle = run("", (path, kind, False))
    told = run(READ, (path, kind, False))
    requests = told.counts["read_requests"] - idle.counts["read_requests"]
    more = {name: count - idle.kernel.get(name, 0) for name, count in told.kernel.items()}
    print(told.text[-400:], told.counts, "idle", idle.exits, idle.counts, "read", told.exits)
    print({name: count for name, count in more.items() if count}, "requests", requests)
    assert told.counts["read_bytes"] - idle.counts["read_bytes"] >= size
    assert requests <= size / MIB * 12  # some hundred KiB each
    reached = sum(told.exits.values()) - sum(idle.exits.values())
    assert reached <= 200, "bells and interrupts do not come to this process"
