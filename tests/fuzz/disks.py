"""Images and requests for disks. What is written goes to a file below the temporary directory, never far."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

from mamushka.errors import GuestFault, MamushkaError
from mamushka.machine.devices.virtio.block import Block
from mamushka.machine.devices.virtio.queue import NEXT, WRITE, Queue
from mamushka.machine.loop import Loop
from mamushka.machine.memory import Memory, shared_region
from mamushka.storage.block import create_raw, open_disk
from mamushka.storage.qcow2.create import create_qcow2
from tests.fuzz.targets import target

_SCRATCH = Path(tempfile.mkdtemp(prefix="mamushka-fuzz-disk-"))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)


def _images() -> tuple[bytes, ...]:
    path = _SCRATCH / "seed"
    create_raw(str(_SCRATCH / "base"), 64 << 10)
    seeds = []
    for version, order, backing in ((3, 4, ""), (2, 4, ""), (3, 0, ""), (3, 6, "base")):
        create_qcow2(
            str(path), 64 << 10, cluster_bits=9, version=version, refcount_order=order,
            backing=backing, backing_format="raw" if backing else "",
        )  # fmt: skip
        seeds.append(path.read_bytes())
        disk = open_disk(str(path), "qcow2", writable=True)
        disk.writev(1024, [memoryview(b"data" * 1024)])
        disk.close()
        seeds.append(path.read_bytes())
        path.unlink()
    squeezer = zlib.compressobj(wbits=-12)
    packed = squeezer.compress(b"squeezed" * 64) + squeezer.flush()
    last = bytearray(seeds[1].ljust(len(seeds[1]) + 511 & ~511, b"\0"))
    (l1,) = struct.unpack_from(">Q", last, 40)
    (l2,) = struct.unpack_from(">Q", last, l1)
    struct.pack_into(">Q", last, l2 & ~(1 << 63), 1 << 62 | len(last))
    dirty = bytearray(seeds[1])
    dirty[79] = 1
    return (*seeds, bytes(dirty), bytes(last) + packed.ljust(512, b"\0"))


@target(*_images())
def qcow2(raw: bytes) -> bool:
    """any bytes are an image that is read and written, each call within bounds, or refused by one of our errors"""
    path = _SCRATCH / "image"
    path.write_bytes(raw)
    dice = random.Random(zlib.crc32(raw))
    try:
        disk = open_disk(str(path), "qcow2", writable=True)
    except MamushkaError:
        return False
    good = 0
    try:
        for _ in range(12):
            offset = dice.randrange(0, max(512, min(disk.size, 128 << 10)), 512)
            data = bytearray(dice.choice((512, 1024, 8192)))
            try:
                match dice.randrange(5):
                    case 0:
                        disk.writev(offset, [memoryview(data)])
                    case 1:
                        disk.discard(offset, len(data))
                    case 2:
                        disk.write_zeroes(offset, len(data), dice.random() < 0.5)
                    case 3:
                        disk.flush()
                    case _:
                        disk.readv(offset, [memoryview(data)])
                good += 1
            except (MamushkaError, OSError):  # OSError: an offset that the file system does not have
                pass
    finally:
        try:
            disk.close()
        except OSError:
            pass
    return good > 6


_DEPTH, _TABLE, _AVAILABLE, _USED, _DATA = 8, 0, 0x100, 0x200, 0x400


def _request(kind: int, sector: int, data: bytes, room: int) -> bytes:
    memory = bytearray(0x1000)
    for index, (at, length, flags, following) in enumerate(
        ((_DATA, 16, NEXT, 1), (_DATA + 16, len(data), NEXT, 2), (_DATA + 0x800, room + 1, WRITE, 0))
    ):
        struct.pack_into("<QIHH", memory, _TABLE + 16 * index, at, length, flags, following)
    struct.pack_into("<HHH", memory, _AVAILABLE, 0, 1, 0)
    struct.pack_into("<IIQ", memory, _DATA, kind, 0, sector)
    memory[_DATA + 16 : _DATA + 16 + len(data)] = data
    return bytes(memory)


class _Line:
    fd = -1

    def fire(self) -> None:
        """Nobody is told."""


@target(
    _request(0, 1, b"", 512), _request(1, 1, bytes(512), 0), _request(4, 0, b"", 0), _request(8, 0, b"", 20),
    _request(11, 0, struct.pack("<QII", 8, 8, 0), 0), _request(13, 0, struct.pack("<QII", 8, 8, 1), 0),
)  # fmt: skip
def block(raw: bytes) -> bool:
    """any rings and requests are served within the disk and the guest's memory, or end the guest by a GuestFault"""
    path = _SCRATCH / "disk"
    if not path.exists():
        create_qcow2(str(path), 1 << 20)
    memory = Memory((shared_region(0, 0x2000),))
    memory.write(0, raw[:0x2000])
    queue = Queue(memory, _DEPTH, _TABLE, _AVAILABLE, _USED, 3 << 28, _Line())
    queue.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    device = Block(open_disk(str(path), "qcow2", writable=True))
    loop = Loop("devices", lambda error: None)  # never started: requests are served here
    try:
        device.start([queue], 3 << 28 | 1 << 9, loop)
        for _ in range(4):
            device._serve()
    except GuestFault:
        return False
    finally:
        device.stop()
        device.close()
        loop.close()
        os.close(queue.bell)
        queue._table = queue._available = queue._used = memoryview(b"")
        memory.close()
    return device.errors == 0
