"""Linux's own drivers against the devices whose frames and files others carry: mount, ping, and a stream of bytes.

The guest's root is a busybox; by virtio-fs it sees a directory of the test's and, read-only, the root of who runs it.
Its network is that of an interface in a namespace, as a container engine leaves it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.machine.board import Board, ram
from mamushka.machine.boot import initramfs
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd
from mamushka.machine.devices.virtio.net import Net
from mamushka.machine.executors.kvm import DEVICE, KvmExecutor, probe
from mamushka.machine.machine import OFF
from mamushka.network.namespace import Entered
from mamushka.network.tap import join
from tests.integration.network.test_tap import INSIDE, OUTSIDE, World
from tests.lab.kernel import Kernel, Unavailable, default_cache, kernel


def _usable() -> bool:
    for module in ("kvm-amd", "tun", "vhost_net"):  # in the lab
        subprocess.run(["/sbin/modprobe", module], check=False, stderr=subprocess.DEVNULL)
    return os.access(DEVICE, os.R_OK | os.W_OK) and probe.probe().usable


pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(not _usable(), reason="no KVM here that runs a stock kernel: make lab"),
    pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="needs busybox-static"),
]

MODULES = ("virtio_mmio", "virtio_net", "virtiofs", "fuse")
SET_UP = f"""
mkdir -p /proc /sys /dev /shared /host
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev
mount -t virtiofs shared /shared || poweroff -f
ip link set lo up
ip link set eth0 up
ip addr add {INSIDE}/24 dev eth0
"""


@pytest.fixture(scope="module")
def stock() -> Kernel:
    try:
        return kernel(default_cache())
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


class Guest:
    """A machine with two shared directories and a card, that runs a script and switches itself off."""

    def __init__(self, stock: Kernel, world: World, directory: Path, script: str, *, vhost: bool) -> None:
        self.servers = [
            self._share(directory, directory.parent / "place-1"),
            self._share(Path("/"), directory.parent / "place-2", read_only=True, cache="always"),
        ]
        self.joined = join(world.inside, "eth0")
        files = Modules(stock.modules)
        order = files.order(MODULES)
        insert = "".join(f"insmod /modules/{module_name(path)}.ko\n" for path in order)
        text = f"#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n{insert}{SET_UP}{script}\n"
        text += "poweroff -f\n"
        archives = [
            initramfs.archive(
                [program("bin/busybox", Path("/bin/busybox").read_bytes()), program("init", text.encode())]
            ),
            initramfs.archive(Member(f"modules/{module_name(path)}.ko", content=files.read(path)) for path in order),
        ]
        self.said = bytearray()
        self.board = Board(KvmExecutor(), ram(256 << 20))
        self.board.console(self.said.extend)
        memory = self.board.machine.memory
        self.board.add("shared", Fs("shared", self.servers[0], memory))
        self.board.add("host", Fs("host", self.servers[1], memory))
        mac = bytes.fromhex(self.joined.interface.mac.replace(":", ""))
        self.net = Net(self.joined.tap, mac, self.joined.interface.mtu, memory=memory if vhost else None)
        self.board.add("net", self.net)
        entry = self.board.boot(stock.image, command_line=command_line(["mitigations=off"]), initramfs=archives)
        self.board.machine.start(entry)

    @staticmethod
    def _share(directory: Path, place: Path, **settings: object) -> Virtiofsd:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            return Virtiofsd(Share(fd, **settings), str(place))  # type: ignore[arg-type]
        finally:
            os.close(fd)

    def finish(self, seconds: float = 180) -> str:
        """What the console said by the time it had switched itself off."""
        end = self.board.machine.wait(seconds)
        text = self.said.decode(errors="replace")
        assert end is not None, f"it goes on:\n{text[-3000:]}"
        assert end.kind == OFF, f"{end}\n{text[-3000:]}"
        return text

    def exits(self) -> dict[str, int]:
        return {name: sum(part.get(name, 0) for part in self.board.machine.exits) for name in ("Read", "Write")}

    def close(self) -> None:
        self.board.close()
        self.joined.undo()


@pytest.mark.parametrize("vhost", [False, True], ids=["process", "vhost-net"])
def test_directories_and_the_network(stock: Kernel, world: World, tmp_path: Path, vhost: bool) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "from-host").write_text("hello guest\n")
    script = f"""
cat /shared/from-host
dd if=/dev/urandom of=/shared/random bs=64k count=64 2>/dev/null
sha256sum < /shared/random
mkdir /shared/sub; ln -s ../from-host /shared/sub/link; cat /shared/sub/link
mount -t virtiofs -o ro host /host && test -x /host/bin/sh && echo sees the host
mount -o remount,rw /host; touch /host/etc/written 2>&1
ping -c 3 -W 2 {OUTSIDE} | grep received
ping -c 1 -s 1300 -W 2 {OUTSIDE} | grep received
cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /proc/mounts
umount /host; umount /shared && mount -t virtiofs shared /shared && echo again $(cat /shared/from-host)
"""
    guest = Guest(stock, world, directory, script, vhost=vhost)
    try:
        assert guest.net.carried_by == ("vhost-net" if vhost else "process")
        text = guest.finish()
    finally:
        guest.close()
    assert text.count("hello guest") == 3, text
    assert "sees the host" in text
    assert "Read-only file system" in text
    assert not os.path.exists("/etc/written")
    assert "again hello guest" in text
    assert "3 packets received" in text and "1 packets received" in text, text
    assert "02:00:00:00:00:02" in text and "\n1400" in text.replace("\r", "")
    random = subprocess.run(["sha256sum", directory / "random"], capture_output=True, text=True, check=True).stdout
    assert (directory / "random").stat().st_size == 4 << 20
    assert random.split()[0] in text


@pytest.mark.parametrize("vhost", [False, True], ids=["process", "vhost-net"])
def test_a_stream_of_bytes(stock: Kernel, world: World, tmp_path: Path, vhost: bool) -> None:
    """iperf3 of the host's, in both directions."""
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    directory = tmp_path / "shared"
    directory.mkdir()
    script = f"""
mount -t virtiofs -o ro host /host
mount -t proc p /host/proc; mount -t tmpfs t /host/tmp; mount -t tmpfs t /host/dev/shm
chroot /host /usr/bin/iperf3 -c {OUTSIDE} -t 3 -J > /shared/sent.json
chroot /host /usr/bin/iperf3 -c {OUTSIDE} -t 3 -J -R > /shared/received.json
"""
    with Entered(world.outside):
        server = subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL)
    guest = Guest(stock, world, directory, script, vhost=vhost)
    try:
        text = guest.finish()
        for name in ("sent", "received"):
            report = json.loads((directory / f"{name}.json").read_text())
            assert "error" not in report, report["error"]
            rate = report["end"]["sum_received"]["bits_per_second"] / 1e6
            print(f"{name}: {rate:.0f} Mbit/s by {guest.net.carried_by}; {guest.net.counts.all()}; {guest.exits()}")
            assert rate > 1, text
    finally:
        guest.close()
        server.kill()
        server.wait()


def test_a_guest_whose_directory_dies_ends(stock: Kernel, world: World, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    guest = Guest(stock, world, directory, "echo ready > /shared/ready; sleep 1000", vhost=False)
    try:
        deadline = time.monotonic() + 120
        while not (directory / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        threading.Timer(0.1, os.kill, (guest.servers[0].pid, 9)).start()
        end = guest.board.machine.wait(60)
        assert end is not None and "virtiofsd of shared has ended" in end.cause
    finally:
        guest.close()
