"""Devices: rings, registers and configuration of a driver that means harm.

An input is a script. Each step begins with a byte that says what is done; the rings lie where a driver has put them,
16 KiB each from 0x10000, and are poked like all other memory.

    k QUEUE            ring its doorbell
    p ADDRESS DATA     poke: an address of four bytes, a length of one, that many bytes
    r OFFSET VALUE     write a register: two bytes, four bytes
    c OFFSET SIZE DATA write to the configuration space
    h                  something of the host: a byte from a source, a new size
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator

from mamushka.errors import GuestFault
from mamushka.machine.devices.serial import Serial
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.balloon import Balloon
from mamushka.machine.devices.virtio.console import Console, Port
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.pmem import Pmem
from mamushka.machine.devices.virtio.queue import INDIRECT, NEXT, WRITE
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.loop import Loop
from mamushka.machine.memory import PMEM, Memory, Region, shared_region
from tests.fuzz.targets import target
from tests.virtio import Line

DEPTH = 8
RAM = 1 << 20
# A step does at most a ring of work, and a script has no more steps than bytes; far more than the slowest takes.
SECONDS_MAX = 5.0


def _ring(index: int) -> tuple[int, int, int]:
    start = 0x10000 + 0x4000 * index
    return start, start + 0x1000, start + 0x2000


def _poke(address: int, data: bytes) -> bytes:
    return b"p" + struct.pack("<IB", address, len(data)) + data


def _asked(queue: int, *buffers: tuple[int, int, int], before: bytes = b"", position: int = 1) -> bytes:
    """A script that puts buffers (address, length, flags) into a queue and rings."""
    table, available, _ = _ring(queue)
    linked = [
        struct.pack("<QIHH", address, length, flags | (NEXT if number + 1 < len(buffers) else 0), number + 1)
        for number, (address, length, flags) in enumerate(buffers)
    ]
    return (
        before
        + _poke(table, b"".join(linked))
        + _poke(available, struct.pack("<HHH", 0, position, 0))
        + bytes((ord("k"), queue))
    )


def _drive(
    device: Device, raw: bytes, host: Callable[[], None] = lambda: None, regions: tuple[Region, ...] = ()
) -> bool:
    """Perform a script; whether it came to its end without a fault."""
    memory, line = Memory((shared_region(0, RAM), *regions)), Line()
    failures: list[BaseException] = []
    loop = Loop("devices", failures.append)
    if isinstance(device, Balloon):
        device._memory = memory
    transport = mmio.Transport(device, memory, line, loop)
    begun = time.monotonic()
    try:
        _set_up(transport)
        for step in _steps(raw):
            step(transport, memory)
            host() if step is _host else None
        return True
    except GuestFault:
        return False
    finally:
        assert time.monotonic() - begun < SECONDS_MAX, "it took too long"
        transport.save()
        transport.write(mmio.STATUS, 4, 0)
        transport.close()
        loop.close()
        line.close()
        memory.close()


def _set_up(transport: mmio.Transport) -> None:
    for register, value in ((mmio.STATUS, 1), (mmio.STATUS, 3)):
        transport.write(register, 4, value)
    for half in (0, 1):
        transport.write(mmio.DRIVER_FEATURES_SEL, 4, half)
        transport.write(mmio.DRIVER_FEATURES, 4, transport.offered >> 32 * half & 0xFFFFFFFF)
    transport.write(mmio.STATUS, 4, 0xB)
    for index in range(len(transport.bells)):
        transport.write(mmio.QUEUE_SEL, 4, index)
        transport.write(mmio.QUEUE_NUM, 4, DEPTH)
        for register, address in zip(
            (mmio.QUEUE_DESC, mmio.QUEUE_DRIVER, mmio.QUEUE_DEVICE), _ring(index), strict=True
        ):
            transport.write(register, 4, address)
        transport.write(mmio.QUEUE_READY, 4, 1)
    transport.write(mmio.STATUS, 4, 0xF)


Step = Callable[[mmio.Transport, Memory], None]


def _host(_transport: mmio.Transport, _memory: Memory) -> None:
    """The caller's."""


def _steps(raw: bytes) -> Iterator[Step]:
    at = 0
    while at < len(raw):
        kind, rest = raw[at], raw[at + 1 :]
        at += 1
        if kind == ord("k") and rest:
            at += 1
            yield lambda transport, _, index=rest[0]: _kick(transport, index)  # type: ignore[misc]
        elif kind == ord("p") and len(rest) >= 5:
            address, length = struct.unpack_from("<IB", rest)
            data = rest[5 : 5 + length]
            at += 5 + length
            yield lambda _, memory, gpa=address % (RAM - 255), data=data: memory.write(gpa, data)  # type: ignore[misc]
        elif kind == ord("r") and len(rest) >= 6:
            offset, number = struct.unpack_from("<HI", rest)
            at += 6
            yield lambda transport, _, offset=offset % 4096, number=number: transport.write(offset & ~3, 4, number)  # type: ignore[misc]
        elif kind == ord("c") and len(rest) >= 10:
            offset, size, number = rest[0], 1 << rest[1] % 4, int.from_bytes(rest[2:10], "little")
            at += 10
            yield lambda transport, _, offset=offset, size=size, number=number: transport.write(  # type: ignore[misc]
                mmio.CONFIG + offset, size, number & (1 << 8 * size) - 1
            )
        elif kind == ord("h"):
            yield _host


def _kick(transport: mmio.Transport, index: int) -> None:
    """What the loop does when a bell was rung, as long as it rings, which it may forever: a few times."""
    if index >= len(transport.bells) or transport.state != "running" or not transport._queues[index].depth:
        return
    os.eventfd_write(transport.bells[index], 1)
    for _ in range(4):
        transport._ear(index)(0)


@target(
    _asked(0, (0x1000, 64, WRITE)),
    _asked(0, (0x5000, 32, INDIRECT), before=_poke(0x5000, struct.pack("<QIHHQIHH", 0x1000, 9, 3, 1, 0x2000, 9, 2, 0))),
    _asked(0, (0x1000, 4, 0), (0x2000, 0xFFFFFFFF, WRITE)),
)
def virtio_rng(raw: bytes) -> bool:
    """any rings, registers and configuration of an entropy device are served or end the guest, in bounded time"""
    return _drive(Rng(), raw)


def _message(port: int, event: int, value: int = 1) -> bytes:
    return _asked(3, (0x1000, 8, 0), before=_poke(0x1000, struct.pack("<IHH", port, event, value)))


@target(
    _asked(2, *[(0x6000 + 256 * turn, 256, WRITE) for turn in range(2)]) + _message(0, 0) + _message(0, 3),
    _asked(4, (0x7000, 64, WRITE)) + _message(1, 6) + b"hhh" + _message(1, 6, 0),
    _asked(1, (0x1000, 200, 0)) + _asked(5, (0x1000, 0x8000, 0), (0x9000, 100, 0)) + b"h" + b"c\x08\x02!" + bytes(7),
)
def virtio_console(raw: bytes) -> bool:
    """any rings, messages and configuration of a console are served or end the guest, in bounded time and memory"""
    source, into = os.pipe2(os.O_NONBLOCK)
    outof, sink = os.pipe2(os.O_NONBLOCK)
    said: list[bytes] = []
    console = Console((Port(-1, said.append), Port(source, sink, "agent")))

    def host() -> None:
        try:
            os.write(into, b"x" * 100)
            os.read(outof, 1000)
        except BlockingIOError:
            pass
        console.ports[1]._take()
        console.resize(1, 2)

    try:
        return _drive(console, raw, host)
    finally:
        assert len(console._pending) == 0
        for fd in (source, into, outof, sink):
            os.close(fd)


@target(
    _asked(0, (0x1000, 12, 0), before=_poke(0x1000, struct.pack("<III", 0xF0, 0xF1, 0xF3))),
    _asked(1, (0x1000, 4, 0), before=_poke(0x1000, struct.pack("<I", 0xF0))),
    _asked(2, (0x1000, 30, 0), before=_poke(0x1000, struct.pack("<HQHQHQ", 4, 1000, 5, 4000, 99, 1))) + b"h",
    _asked(3, (0x80000, 0x4000, WRITE), (0x90000, 0x1000, WRITE)) + b"c\x04\x02\x10" + bytes(7) + b"h",
)
def virtio_balloon(raw: bytes) -> bool:
    """any rings and configuration of a balloon are served or end the guest, and nothing outside its RAM is dropped"""
    balloon = Balloon(Memory(()))
    outside = Region(1 << 32, 1 << 16, kind=PMEM)
    outside.view[:] = b"\xaa" * len(outside.view)
    canary = outside.view

    def host() -> None:
        balloon.resize(0x10000)
        balloon._ask()
        assert bytes(canary) == b"\xaa" * len(canary), "memory that is no RAM was dropped"

    return _drive(balloon, raw, host, (outside,))


@target(
    _asked(0, (0x1000, 4, 0), (0x2000, 4, WRITE)), _asked(0, (0x1000, 3, 0)) + _asked(0, (0x2000, 1, WRITE), position=2)
)
def virtio_pmem(raw: bytes) -> bool:
    """any rings of a pmem device are served or end the guest, in bounded time"""
    region = shared_region(1 << 32, 1 << 16)
    region.kind = PMEM
    return _drive(Pmem(region), raw, regions=(region,))


@target(b"\x03\x80\x00\x01\x03\x03\x02\x01\x01\x0f\x00x\x82\x85", b"\x04\x1a\x00y\x80\x85\x86", bytes(range(16)))
def serial(raw: bytes) -> bool:
    """any accesses to a serial port are answered, with bounded buffers, and each fires its line at most once"""
    line, loop = Line(), Loop("devices", lambda error: None)
    said: list[bytes] = []
    port = Serial(line, loop, said.append)
    try:
        at = accesses = 0
        while at < len(raw):
            accesses += 1
            if raw[at] & 0x80:
                assert 0 <= port.read(raw[at] & 15, 1) < 256
            else:
                port.write(raw[at] & 15, 1, raw[at + 1] if at + 1 < len(raw) else 0)
                at += 1
            at += 1
        assert line.fired <= accesses and len(port._incoming) <= 16
        return bool(line.fired)
    finally:
        port.close()
        loop.close()
        line.close()
