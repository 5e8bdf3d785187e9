"""The block device, asked by a driver that does as Linux does, over disks of the real kinds."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import GuestFault
from mamushka.machine.devices.virtio.block import Block, Disk, Limits
from mamushka.machine.devices.virtio.block import device as block_device
from mamushka.machine.devices.virtio.block.request import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
    WRITE_ZEROES,
)
from mamushka.storage.block import create_raw, open_disk
from mamushka.storage.qcow2.create import create_qcow2
from tests.virtio import Guest, Ring, guest

SIZE = 1 << 20
FLUSH_BIT = 1 << 9


class Driver:
    """What virtio_blk does, one request at a time."""

    def __init__(self, machine: Guest) -> None:
        self.machine = machine

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> tuple[int, bytes, int]:
        """Status, what was read, and the length in the used ring."""
        answer, used = self.machine.ask(0, struct.pack("<IIQ", kind, 0, sector) + data, room + 1)
        return answer[-1], answer[:-1], used

    def read(self, sector: int, length: int) -> bytes:
        status, data, used = self.ask(IN, sector, room=length)
        assert (status, used) == (OK, length + 1)
        return data

    def write(self, sector: int, data: bytes) -> None:
        assert self.ask(OUT, sector, data)[0] == OK


def make(directory: Path, kind: str, size: int = SIZE) -> str:
    path = str(directory / f"disk.{kind}")
    if kind == "raw":
        create_raw(path, size)
    else:
        create_qcow2(path, size)
    return path


@contextmanager
def driven(device: Block, without: int = 0) -> Iterator[Driver]:
    with guest(device, without=without) as machine:
        machine.start()
        yield Driver(machine)
        assert not machine.failures


@pytest.fixture(params=["raw", "qcow2"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return open_disk(make(tmp_path, request.param), request.param, writable=True)


def test_what_is_written_is_read(disk: Disk) -> None:
    device = Block(disk, name="7", serial="mamushka-1")
    with driven(device) as driver:
        driver.write(3, b"abcdefgh" * 512)
        assert driver.read(0, 8192) == bytes(1536) + b"abcdefgh" * 512 + bytes(8192 - 1536 - 4096)
        assert driver.read(SIZE // 512 - 1, 512) == bytes(512)
        assert driver.ask(FLUSH)[0] == OK
        assert driver.ask(GET_ID, room=20) == (OK, b"mamushka-1".ljust(20, b"\0"), 21)
        assert "block 7" in [thread.name for thread in threading.enumerate()]
        counts = device.counts()
        assert (counts["read_requests"], counts["read_bytes"], counts["write_bytes"]) == (2, 8704, 4096)
        assert counts["flush_requests"] == 1
        assert counts["errors"] == 0
    assert "block 7" not in [thread.name for thread in threading.enumerate()]


def test_zeroes_and_discards(disk: Disk) -> None:
    with driven(Block(disk)) as driver:
        driver.write(0, b"x" * 32768)
        driver.write(64, b"x" * 16384)
        ranges = struct.pack("<QII", 1, 2, 0) + struct.pack("<QII", 60, 20, 1)
        assert driver.ask(WRITE_ZEROES, data=ranges)[0] == OK
        expected = bytearray(b"x" * 49152)
        expected[512 : 3 * 512] = bytes(1024)
        expected[60 * 512 : 80 * 512] = bytes(20 * 512)
        assert driver.read(0, 49152) == expected
        assert driver.ask(DISCARD, data=struct.pack("<QII", 0, SIZE // 512, 0))[0] == OK
        assert driver.read(0, 49152) in (bytes(49152), bytes(expected))


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "status"),
    [
        (IN, SIZE // 512, b"", 512, IOERR),
        (IN, SIZE // 512 - 1, b"", 1024, IOERR),
        (IN, 2**64 - 1, b"", 512, IOERR),
        (IN, 0, b"", 511, IOERR),
        (OUT, SIZE // 512 - 1, bytes(1024), 0, IOERR),
        (OUT, 0, bytes(100), 0, IOERR),
        (2, 0, b"", 0, UNSUPP),
        (10, 0, b"", 24, UNSUPP),
        (2**32 - 1, 0, b"", 0, UNSUPP),
        (DISCARD, 0, b"", 0, IOERR),
        (DISCARD, 0, bytes(15), 0, IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 1, 1), 0, UNSUPP),
        (DISCARD, 0, struct.pack("<QII", 2**64 - 1, 1, 0), 0, IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 2**32 - 1, 0), 0, IOERR),
        (DISCARD, 0, bytes(16 * 65), 0, IOERR),
        (WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 2), 0, UNSUPP),
        (WRITE_ZEROES, 0, struct.pack("<QII", SIZE // 512, 1, 0), 0, IOERR),
    ],
)
def test_what_is_wrong_is_told_by_the_status(
    disk: Disk, kind: int, sector: int, data: bytes, room: int, status: int
) -> None:
    device = Block(disk)
    with driven(device) as driver:
        assert driver.ask(kind, sector, data, room)[0] == status
        assert device.errors == 1
        assert driver.read(0, 512) == bytes(512)


def test_one_request_is_short_work(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_device, "REQUEST_MAX", 8192)
    with driven(Block(disk)) as driver:
        driver.write(0, b"x" * 8192)
        assert driver.read(0, 8192) == b"x" * 8192
        assert driver.ask(IN, room=8704)[0] == IOERR
        assert driver.ask(OUT, data=b"y" * 8704)[0] == IOERR
        assert driver.read(0, 8192) == b"x" * 8192


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([(0x1000, 15)], [(0x11000, 513)]), ([(0x1000, 16)], []), ([(0x1000, 16)], [(0x11000, 0)]), ([], [(0x11000, 1)])],
)
def test_without_header_or_status_the_guest_ends(
    tmp_path: Path, readable: list[tuple[int, int]], writable: list[tuple[int, int]]
) -> None:
    with guest(Block(open_disk(make(tmp_path, "raw"), "raw"))) as machine:
        machine.start()
        machine.rings[0].add(readable, writable)
        machine.kick(0)
        end = time.monotonic() + 5
        while not machine.failures and time.monotonic() < end:
            time.sleep(0.001)
        assert isinstance(machine.failures[0], GuestFault)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_a_request_may_be_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, out: list[int], back: list[int]
) -> None:
    """Header, data and status in buffers of any lengths are one request."""
    path = make(tmp_path_factory.mktemp("cut"), "raw")
    content = os.urandom(4096)
    Path(path).write_bytes(content.ljust(SIZE, b"\0"))
    out, back = [*out, max(0, 16 - sum(out))], [*back, -sum(back) % 512 + 1]
    with driven(Block(open_disk(path, "raw"))) as driver:
        machine, ring = driver.machine, driver.machine.rings[0]
        machine.memory.write(0x1000, struct.pack("<IIQ", IN, 0, 1).ljust(sum(out), b"?"))
        machine.memory.write(0x11000, b"\xee" * sum(back))
        starts = (
            [0x1000 + sum(out[:at]) for at in range(len(out))],
            [0x11000 + sum(back[:at]) for at in range(len(back))],
        )
        ring.add(list(zip(starts[0], out, strict=True)), list(zip(starts[1], back, strict=True)))
        machine.kick(0)
        while not ring.collect():
            assert machine.line.wait()
        length = sum(back) - 1
        assert bytes(machine.memory.read(0x11000, length + 1)) == content.ljust(SIZE, b"\0")[512 : 512 + length] + b"\0"


def test_a_disk_to_read_says_so_and_refuses_the_rest(tmp_path: Path) -> None:
    device = Block(open_disk(make(tmp_path, "raw"), "raw"))
    with driven(device) as driver:
        offered = driver.machine.offered()
        assert offered >> 5 & 1
        assert not offered >> 13 & 3
        for kind, data in ((OUT, bytes(512)), (DISCARD, bytes(16)), (WRITE_ZEROES, bytes(16))):
            assert driver.ask(kind, 0, data)[0] == IOERR
        assert driver.ask(FLUSH)[0] == OK


def test_the_configuration_is_that_of_the_specification(tmp_path: Path) -> None:
    raw = Block(open_disk(make(tmp_path, "qcow2", 3 << 30), "qcow2", writable=True)).config()
    assert len(raw) == 60
    assert struct.unpack_from("<Q", raw)[0] == (3 << 30) // 512
    assert struct.unpack_from("<I", raw, 12)[0] == 254
    assert struct.unpack_from("<I", raw, 20)[0] == 512
    assert struct.unpack_from("<BBHI", raw, 24) == (3, 0, 8, 128)
    assert struct.unpack_from("<III", raw, 36) == (1 << 22, 64, 128)
    assert struct.unpack_from("<IIB", raw, 48) == (1 << 18, 64, 1)


def test_a_disk_that_fails_does_not_end_the_guest(tmp_path: Path) -> None:
    path = make(tmp_path, "qcow2")
    with open(path, "r+b") as file:  # the L1 entry leads nowhere
        file.seek(3 << 16)
        file.write(struct.pack(">Q", 0x1234 | 1 << 63 | 0x600))
    with driven(Block(open_disk(path, "qcow2", writable=True))) as driver:
        assert driver.ask(IN, 0, room=512)[0] == IOERR
        assert driver.ask(OUT, 0, bytes(512))[0] == IOERR
        assert driver.ask(GET_ID, room=20)[0] == OK


class Counting:
    """A disk that counts flushes and may be slow; what is behind it is real."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.flushes, self.gate = disk, 0, threading.Event()
        self.size, self.writable, self.granularity = disk.size, disk.writable, disk.granularity
        self.readv, self.writev = disk.readv, disk.writev
        self.discard, self.write_zeroes, self.close = disk.discard, disk.write_zeroes, disk.close
        self.gate.set()

    def flush(self) -> None:
        assert self.gate.wait(5)
        self.flushes += 1
        self.disk.flush()


def test_a_driver_that_knows_no_flush_has_each_write_flushed(disk: Disk) -> None:
    counting = Counting(disk)
    with driven(Block(counting), without=FLUSH_BIT) as driver:
        driver.write(0, bytes(512))
        driver.write(1, bytes(512))
        assert counting.flushes == 2


def test_a_slow_flush_does_not_hold_the_loop_up(disk: Disk) -> None:
    counting = Counting(disk)
    with driven(Block(counting)) as driver:
        machine = driver.machine
        counting.gate.clear()
        machine.memory.write(0x1000, struct.pack("<IIQ", FLUSH, 0, 0))
        machine.rings[0].add([(0x1000, 16)], [(0x11000, 1)])
        machine.kick(0)
        begin = time.monotonic()
        assert machine.loop.call(lambda: threading.current_thread().name) == "devices"
        assert time.monotonic() - begin < 1
        assert not machine.rings[0].collect()
        counting.gate.set()
        while not machine.rings[0].collect():
            assert machine.line.wait()


@pytest.mark.parametrize(
    ("limits", "length", "least"),
    [(Limits(write_iops=100), 512, 0.25), (Limits(write_bps=512 * 100), 512, 0.25), (Limits(read_iops=1), 512, 0.0)],
)
def test_limits_hold(disk: Disk, limits: Limits, length: int, least: float) -> None:
    with driven(Block(disk, limits=limits)) as driver:
        begin = time.monotonic()
        for _ in range(40):
            driver.write(0, bytes(length))
        taken = time.monotonic() - begin
        assert least < taken < least + 1


def test_limits_change_while_a_request_waits(disk: Disk) -> None:
    device = Block(disk, limits=Limits(read_bps=512))
    with driven(device) as driver:
        driver.read(0, 32768)  # a minute of the limit
        machine = driver.machine
        machine.rings[0].add([(0x1000, 16)], [(0x11000, 513)])
        machine.kick(0)
        time.sleep(0.05)
        assert not machine.rings[0].collect()
        device.limit(Limits())
        machine.kick(0)
        while not machine.rings[0].collect():
            assert machine.line.wait()


def test_many_requests_are_one_round(disk: Disk) -> None:
    with driven(Block(disk)) as driver:
        machine = driver.machine
        ring = machine.rings[0]
        machine.loop.hold()
        for sector in range(20):
            at = 0x1000 + 1024 * sector
            machine.memory.write(at, struct.pack("<IIQ", OUT, 0, sector) + bytes((sector,)) * 512)
            ring.add([(at, 528)], [(0x11000 + sector, 1)])
        machine.kick(0)
        assert ring.collect() == []
        machine.loop.release()
        done: list[tuple[int, int]] = []
        while len(done) < 20:
            assert machine.line.wait()
            done += ring.collect()
        assert bytes(machine.memory.read(0x11000, 20)) == bytes(20)
        assert driver.read(0, 20 * 512) == b"".join(bytes((sector,)) * 512 for sector in range(20))


def test_a_machine_goes_on_elsewhere(tmp_path: Path) -> None:
    path = make(tmp_path, "qcow2")
    with driven(Block(open_disk(path, "qcow2", writable=True))) as driver:
        driver.write(0, b"before!!" * 64)
        driver.machine.loop.hold()
        state = driver.machine.transport.save()
        copy = Path(path).read_bytes()  # complete, though nobody closed it
        memory = bytes(driver.machine.memory.read(0, 1 << 20))
        counters = vars(driver.machine.rings[0])
        driver.machine.loop.release()
    other = tmp_path / "other"
    other.write_bytes(copy)
    with guest(Block(open_disk(str(other), "qcow2", writable=True))) as machine:
        machine.memory.write(0, memory)
        machine.transport.restore(state)
        machine.loop.start()
        ring = Ring(machine.memory, 0x20000, counters["depth"], counters["features"])
        ring.index, ring.seen = counters["index"], counters["seen"]
        machine.rings = [ring]
        assert Driver(machine).read(0, 512) == b"before!!" * 64


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=16, max_size=200), st.integers(0, 2000), st.integers(0, 600))
def test_any_request_is_answered(tmp_path_factory: pytest.TempPathFactory, raw: bytes, room: int, cut: int) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    directory.mkdir(exist_ok=True)
    path = directory / "disk.qcow2"
    if not path.exists():
        make(directory, "qcow2")
    with driven(Block(open_disk(str(path), "qcow2", writable=True))) as driver:
        answer, used = driver.machine.ask(0, bytes((raw[0] % 16,)) + bytes(7) + raw[8:] + bytes(cut), room + 1)
        assert answer[-1] in (OK, IOERR, UNSUPP)
        assert used <= room + 1
