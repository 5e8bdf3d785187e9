"""Linux on our disks: a file system, fio's verification, discards that free, and a sequential read, counted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import initramfs
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from mamushka.machine.devices.virtio.block import Block
from mamushka.machine.executors.kvm import DEVICE, KvmExecutor, probe
from mamushka.machine.machine import OFF
from mamushka.storage.block import create_raw, open_disk
from mamushka.storage.qcow2.create import create_qcow2
from tests.integration.storage.disks import check, img
from tests.lab.kernel import Kernel, Unavailable, default_cache, kernel

MIB = 1 << 20
TOOLS = ("/usr/bin/fio", "/sbin/mke2fs", "/sbin/fstrim")


def _usable() -> bool:
    subprocess.run(["/sbin/modprobe", "kvm-amd"], check=False, stderr=subprocess.DEVNULL)  # in the lab
    return os.access(DEVICE, os.R_OK | os.W_OK) and probe.probe().usable


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not _usable(), reason="no KVM here that runs a stock kernel: make lab"),
    pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="needs busybox-static"),
    pytest.mark.skipif(not all(map(os.path.exists, TOOLS)), reason="needs fio, e2fsprogs and util-linux"),
]


@pytest.fixture(scope="module")
def stock() -> Kernel:
    try:
        return kernel(default_cache())
    except Unavailable as error:
        pytest.skip(str(error))


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


def run(stock: Kernel, script: str, *disks: tuple[str, str, bool]) -> Told:
    """Boot, perform the script (busybox' shell), switch off. Disks are (path, format, writable), vda and on."""
    files = Modules(stock.modules)
    order = files.order(("virtio_mmio", "virtio_blk", "ext4"))
    insert = "".join(f"insmod /modules/{module_name(path)}.ko\n" for path in order)
    text = (
        "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n"
        "mkdir -p /proc /sys /dev /tools\nmount -t proc p /proc\nmount -t sysfs s /sys\nmount -t devtmpfs d /dev\n"
        f"{insert}{script}\npoweroff -f\n"
    )
    archives = [
        initramfs.archive([program("bin/busybox", Path("/bin/busybox").read_bytes()), program("init", text.encode())]),
        initramfs.archive(Member(f"modules/{module_name(path)}.ko", content=files.read(path)) for path in order),
    ]
    board = Board(KvmExecutor(), ram(384 * MIB), vcpus=1)
    told, said, lock = Told(), bytearray(), threading.Lock()

    def listen(content: bytes) -> None:
        with lock:
            said.extend(content)

    try:
        board.console(listen)
        blocks = []
        for number, (path, kind, writable) in enumerate(disks):
            blocks.append(
                Block(open_disk(path, kind, writable=writable), name=str(number), serial=f"mamushka-{number}")
            )
            board.add(f"disk{number}", blocks[-1])
        entry = board.boot(stock.image, command_line=command_line(["mitigations=off"], quiet=True), initramfs=archives)
        begin = time.monotonic()
        board.machine.start(entry)
        end = board.machine.wait(200)
        told.seconds = time.monotonic() - begin
        with lock:
            told.text = said.decode(errors="replace")
        assert end is not None, told.text[-3000:]
        assert end.kind == OFF, (end, told.text[-3000:])
        told.counts = blocks[0].counts()
        told.exits = board.machine.exits[0]
        told.kernel = board.machine.executor.counts()
        return told
    finally:
        board.close()


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
def test_a_file_system_on_it_keeps_what_it_is_given_and_gives_space_back(
    kind: str, stock: Kernel, tools: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "disk")
    if kind == "raw":
        create_raw(path, 96 * MIB)
    else:
        create_qcow2(path, 96 * MIB)
    told = run(stock, WORK, (path, kind, True), (tools, "raw", False))
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
def test_a_sequential_read_costs_few_exits(kind: str, stock: Kernel, tmp_path: Path) -> None:
    size = int(os.environ.get("MAMUSHKA_TEST_READ_MIB", "64")) * MIB
    path = str(tmp_path / "disk")
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(b"\xa5" * MIB)
    if kind == "qcow2":
        img("convert", "-f", "raw", "-O", "qcow2", path, path + ".qcow2")
        path += ".qcow2"
    idle = run(stock, "", (path, kind, False))
    told = run(stock, READ, (path, kind, False))
    requests = told.counts["read_requests"] - idle.counts["read_requests"]
    more = {name: count - idle.kernel.get(name, 0) for name, count in told.kernel.items()}
    print(told.text[-400:], told.counts, "idle", idle.exits, idle.counts, "read", told.exits)
    print({name: count for name, count in more.items() if count}, "requests", requests)
    assert told.counts["read_bytes"] - idle.counts["read_bytes"] >= size
    assert requests <= size / MIB * 12  # some hundred KiB each
    reached = sum(told.exits.values()) - sum(idle.exits.values())
    assert reached <= 200, "bells and interrupts do not come to this process"
