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
from contextlib import contextmanager
from pathlib import Path

import pytest

from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd
from mamushka.machine.devices.virtio.net import Net
from mamushka.network.namespace import Entered
from mamushka.network.tap import join
from tests.integration.machine.linux_guest import Guest, linux, needs_linux
from tests.integration.network.test_tap import INSIDE, OUTSIDE, World

pytestmark = [pytest.mark.root, *needs_linux]

SET_UP = f"""mkdir -p /shared /host
mount -t virtiofs shared /shared || poweroff -f
ip link set lo up
ip link set eth0 up
ip addr add {INSIDE}/24 dev eth0
"""


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


class Shared:
    """What a guest with two shared directories and a card has of the host's."""

    def __init__(self, directory: Path, world: World) -> None:
        self.servers = [
            self._share(directory, directory.parent / "place-1"),
            self._share(Path("/"), directory.parent / "place-2", read_only=True, cache="always"),
        ]
        self.joined = join(world.inside, "eth0")

    @staticmethod
    def _share(directory: Path, place: Path, **settings: object) -> Virtiofsd:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            return Virtiofsd(Share(fd, **settings), str(place))  # type: ignore[arg-type]
        finally:
            os.close(fd)

    def plug(self, guest: Guest, *, vhost: bool) -> Net:
        """Its devices into a guest; the card."""
        memory, interface = guest.machine.memory, self.joined.interface
        for name, server in zip(("shared", "host"), self.servers, strict=True):
            guest.board.add(name, Fs(name, server, memory))
        mac = bytes.fromhex(interface.mac.replace(":", ""))
        net = Net(self.joined.tap, mac, interface.mtu, memory=memory if vhost else None)
        guest.board.add("net", net)
        return net


@contextmanager
def sharing(world: World, directory: Path, script: str, *, vhost: bool) -> Iterator[tuple[Guest, Shared, Net]]:
    """A guest that mounts and wires itself and performs a script."""
    with linux(SET_UP + script, modules=("virtio_net", "virtiofs", "fuse")) as guest:
        shared = Shared(directory, world)
        net = shared.plug(guest, vhost=vhost)
        try:
            yield guest, shared, net
        finally:
            guest.machine.stop()
    shared.joined.undo()


def reached(guest: Guest) -> dict[str, int]:
    """Exits that came to this process."""
    return {name: sum(part.get(name, 0) for part in guest.machine.exits) for name in ("Read", "Write")}


@pytest.mark.parametrize("vhost", [False, True], ids=["process", "vhost-net"])
def test_directories_and_the_network(world: World, tmp_path: Path, vhost: bool) -> None:
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
    with sharing(world, directory, script, vhost=vhost) as (guest, _, net):
        assert net.carried_by == ("vhost-net" if vhost else "process")
        text = guest.finish()
    assert text.count("hello guest") == 3, text
    assert "sees the host" in text
    assert "Read-only file system" in text
    assert not os.path.exists("/etc/written")
    assert "again hello guest" in text
    assert "3 packets received" in text and "1 packets received" in text, text
    assert "02:00:00:00:00:02" in text and "\n1400" in text
    random = subprocess.run(["sha256sum", directory / "random"], capture_output=True, text=True, check=True).stdout
    assert (directory / "random").stat().st_size == 4 << 20
    assert random.split()[0] in text


@pytest.mark.parametrize("vhost", [False, True], ids=["process", "vhost-net"])
def test_a_stream_of_bytes(world: World, tmp_path: Path, vhost: bool) -> None:
    """iperf3 of the host's, in both directions."""
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    directory, further = tmp_path / "shared", 5202
    directory.mkdir()
    script = f"""
mount -t virtiofs -o ro host /host
mount -t proc p /host/proc; mount -t tmpfs t /host/tmp; mount -t tmpfs t /host/dev/shm
chroot /host /usr/bin/iperf3 -c {OUTSIDE} -t 3 -J > /shared/sent.json
chroot /host /usr/bin/iperf3 -c {OUTSIDE} -p {further} -t 3 -J -R > /shared/received.json
"""
    with Entered(world.outside):  # one for each direction: a server may be busy with the end of the first one still
        servers = [
            subprocess.Popen(["iperf3", "-s", "-p", str(port)], stdout=subprocess.DEVNULL) for port in (5201, further)
        ]
    try:
        with sharing(world, directory, script, vhost=vhost) as (guest, _, net):
            text = guest.finish()
            for name in ("sent", "received"):
                report = json.loads((directory / f"{name}.json").read_text())
                assert "error" not in report, report["error"]
                rate = report["end"]["sum_received"]["bits_per_second"] / 1e6
                print(f"{name}: {rate:.0f} Mbit/s by {net.carried_by}; {net.counts.all()}; {reached(guest)}")
                assert rate > 1, text
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_a_guest_whose_directory_dies_ends(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    script = "echo ready > /shared/ready; sleep 1000"
    with sharing(world, directory, script, vhost=False) as (guest, shared, _):
        guest.start()
        deadline = time.monotonic() + 120
        while not (directory / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        threading.Timer(0.1, os.kill, (shared.servers[0].pid, 9)).start()
        end = guest.machine.wait(60)
        assert end is not None and "virtiofsd of shared has ended" in end.cause
