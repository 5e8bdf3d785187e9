"""Console, balloon and pmem, each asked by a driver that does as Linux does."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from mamushka.errors import GuestFault, Invalid
from mamushka.linux.memory import memfd
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.balloon import PAGE_POISON, PAGE_REPORTING, STATS_VQ, Balloon, runs
from mamushka.machine.devices.virtio.console import Console, Port
from mamushka.machine.devices.virtio.console.device import MULTIPORT
from mamushka.machine.devices.virtio.pmem import Pmem
from mamushka.machine.devices.virtio.queue import EVENT_IDX
from mamushka.machine.memory import PAGE, PMEM, Memory, Region, shared_region
from tests.virtio import RAM, Guest, guest


def until(check: Callable[[], object], machine: Guest | None = None) -> None:
    end = time.monotonic() + 5
    while not check():
        assert machine is None or not machine.failures, machine.failures
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield ends
    finally:
        for fd in ends:
            os.close(fd)


# Console

READY, ADD, PORT_READY, CONSOLE_PORT, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7


class Driver:
    """drivers/char/virtio_console.c, as far as a port is concerned."""

    def __init__(self, machine: Guest) -> None:
        self.machine = machine
        self.heard: list[tuple[int, int, int, bytes]] = []
        self._at = 0x80000
        self._rooms: dict[tuple[int, int], tuple[int, int]] = {}

    def room(self, index: int, size: int = 256, count: int = 8) -> None:
        ring = self.machine.rings[index]
        before = ring.index
        for _ in range(count):
            head = ring.add([], [(self._at, size)])
            self._rooms[index, head] = (self._at, size)
            self._at += size
        if ring.wants_kick(before):
            self.machine.kick(index)

    def came(self, index: int) -> bytes:
        found = b""
        for head, written in self.machine.rings[index].collect():
            at, _ = self._rooms.pop((index, head))
            found += bytes(self.machine.memory.read(at, written))
        return found

    def send(self, port: int, event: int, value: int = 1) -> None:
        self.machine.ask(3, struct.pack("<IHH", port, event, value))

    def control(self) -> list[tuple[int, int, int, bytes]]:
        """Messages since the last call, and room for as many."""
        came = self.machine.rings[2].collect()
        for head, written in came:
            at, _ = self._rooms.pop((2, head))
            raw = bytes(self.machine.memory.read(at, written))
            self.heard.append((*struct.unpack_from("<IHH", raw), raw[8:]))
        self.room(2, 72, len(came))
        found, self.heard = self.heard, []
        return found

    def greet(self, ports: int) -> list[tuple[int, int, int, bytes]]:
        self.room(2, 72, 16)
        self.send(0, READY)
        for port in range(ports):
            self.send(port, PORT_READY)
            self.send(port, OPEN)
        return self.control()


def test_ports_are_introduced() -> None:
    with guest(Console((Port(), Port(name="agent")), columns=100, rows=30)) as machine:
        machine.start(queues=6)
        assert machine.transport.read(mmio.CONFIG, 8) == 100 | 30 << 16 | 2 << 32
        driver = Driver(machine)
        assert driver.greet(2) == [
            (0, ADD, 1, b""),
            (1, ADD, 1, b""),
            (0, CONSOLE_PORT, 1, b""),
            (0, RESIZE, 0, struct.pack("<HH", 100, 30)),
            (0, OPEN, 1, b""),
            (1, NAME, 1, b"agent"),
            (1, OPEN, 1, b""),
        ]
        machine.loop.call(lambda: machine.device.resize(132, 43))  # type: ignore[attr-defined]
        assert driver.control() == [(0, RESIZE, 0, struct.pack("<HH", 132, 43))]
        assert machine.transport.read(mmio.CONFIG, 4) == 132 | 43 << 16
        driver.send(7, PORT_READY)
        driver.send(0xFFFFFFFF, OPEN)
        machine.ask(3, b"short")
        assert driver.control() == []


def test_bytes_flow_both_ways() -> None:
    said: list[bytes] = []
    with ExitStack() as opened:
        (keyboard, keys), (source, into), (outof, sink) = (opened.enter_context(pipe()) for _ in range(3))
        with guest(Console((Port(keyboard, said.append), Port(source, sink, "agent")))) as machine:
            machine.start(queues=6)
            driver = Driver(machine)
            os.write(keys, b"typed before anybody looks")
            driver.greet(2)
            driver.room(0)
            heard = b""
            while heard != b"typed before anybody looks":
                machine.line.wait(1)
                heard += driver.came(0)
            machine.ask(1, b"login: ")
            until(lambda: b"".join(said) == b"login: ")
            machine.ask(5, b"x" * 4096)
            assert os.read(outof, 10000) == b"x" * 4096
            sent = os.urandom(5000)
            os.write(into, sent)
            heard = b""
            end = time.monotonic() + 5
            while len(heard) < 5000 and time.monotonic() < end:
                driver.room(4, 100, len(machine.rings[4].free) // 2)
                machine.line.wait(0.01)
                heard += driver.came(4)
            assert heard == sent


def test_nothing_is_read_for_a_port_that_nobody_opened() -> None:
    with pipe() as (source, into), guest(Console((Port(), Port(source, name="agent")))) as machine:
        machine.start(queues=6)
        driver = Driver(machine)
        driver.greet(2)
        driver.send(1, OPEN, 0)
        driver.room(4)
        os.write(into, b"early")
        time.sleep(0.02)
        assert driver.came(4) == b""
        driver.send(1, OPEN, 1)
        until(lambda: driver.came(4) == b"early")


def test_a_source_that_ends_is_told() -> None:
    source, into = os.pipe2(os.O_NONBLOCK)
    with guest(Console((Port(), Port(source, name="agent")))) as machine:
        machine.start(queues=6)
        driver = Driver(machine)
        driver.greet(2)
        driver.room(4)
        os.close(into)
        until(lambda: (1, OPEN, 0, b"") in driver.control())
    os.close(source)


def test_a_terminal_that_nobody_reads_does_not_stop_its_guest() -> None:
    with pipe() as (_outof, sink), guest(Console((Port(-1, sink),))) as machine:
        machine.start(queues=4)
        Driver(machine).greet(1)
        for _ in range(60):
            machine.ask(1, b"." * 4096)
        assert machine.device.ports[0].dropped > 0  # type: ignore[attr-defined]


def test_a_named_port_waits_for_its_reader_and_loses_nothing() -> None:
    with pipe() as (outof, sink), guest(Console((Port(), Port(-1, sink, "agent")))) as machine:
        machine.start(queues=6)
        Driver(machine).greet(2)
        sent = os.urandom(200 << 10)
        machine.memory.write(0x200000, sent)
        machine.rings[5].add([(0x200000, 100 << 10), (0x200000 + (100 << 10), 100 << 10)], [])
        machine.kick(5)
        until(lambda: machine.device.ports[1].skip > 0)  # type: ignore[attr-defined]
        assert machine.rings[5].collect() == []
        state = machine.transport.save()
        found = b""
        while len(found) < len(sent):
            try:
                found += os.read(outof, 1 << 20)
            except BlockingIOError:
                time.sleep(0.001)
        assert found == sent
        until(lambda: machine.rings[5].collect())
        assert struct.unpack_from("<?I", state["device.ports"], 10 + 5)[1] > 0


def test_without_several_ports_the_terminal_is_simply_there() -> None:
    said: list[bytes] = []
    with pipe() as (keyboard, keys), guest(Console((Port(keyboard, said.append),)), without=1 << MULTIPORT) as machine:
        machine.start(queues=2)
        driver = Driver(machine)
        driver.room(0)
        os.write(keys, b"ls\n")
        until(lambda: driver.came(0) == b"ls\n")
        machine.ask(1, b"ok")
        until(lambda: said == [b"ok"])


def test_a_character_in_an_emergency() -> None:
    said: list[bytes] = []
    with guest(Console((Port(-1, said.append),))) as machine:
        machine.transport.write(mmio.CONFIG + 8, 4, ord("!"))
        assert said == [b"!"]


def test_a_console_goes_on_elsewhere() -> None:
    with pipe() as (source, into), guest(Console((Port(), Port(source, name="a")))) as first:
        first.start(queues=6)
        Driver(first).greet(2)
        state = first.transport.save()
        with guest(Console((Port(), Port(source, name="a")))) as second:
            second.memory.write(0, first.memory.read(0, RAM))
            second.loop.start()
            second.transport.restore(state)
            assert second.device.ports[1].open  # type: ignore[attr-defined]
            first.write(mmio.STATUS, 0)
            driver = Driver(second)
            second.rings = first.rings
            for ring in second.rings:
                ring.memory = second.memory
            driver.room(4)
            os.write(into, b"still here")
            until(lambda: driver.came(4) == b"still here")
            with pytest.raises(Invalid):
                Console((Port(),)).restore({name[7:]: data for name, data in state.items() if name[:7] == "device."})


@pytest.mark.parametrize("ports", [(), (Port(), Port()), (Port(), Port(name="n" * 65)), (Port(),) * 9])
def test_a_console_that_cannot_be(ports: tuple[Port, ...]) -> None:
    with pytest.raises(Invalid):
        Console(ports)


# Balloon


def resident(region: Region) -> int:
    """Bytes of a shared region's file that exist."""
    return os.fstat(region.fd).st_blocks * 512


def pages(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


@contextmanager
def balloon(region: Region | None = None, without: int = 0) -> Iterator[tuple[Guest, Balloon, Region]]:
    region = region or shared_region(0, RAM)
    memory = Memory((region,))
    memory.write(0, b"\xaa" * RAM if region.shared else b"")
    memory.write(0, bytes(0x80000))  # rings must be empty
    device = Balloon(memory)
    machine = Guest(device, memory=memory, without=without)
    try:
        yield machine, device, region
    finally:
        machine.close()


def test_pages_go_back_and_come_again() -> None:
    with balloon() as (machine, device, region):
        machine.start()
        before = resident(region)
        machine.loop.call(lambda: device.resize(0x80000))
        assert machine.line.wait()
        assert machine.interrupt() & mmio.CONFIG_CHANGED
        assert machine.transport.read(mmio.CONFIG, 4) == 128
        machine.ask(0, pages(*range(0x300, 0x380)))
        machine.transport.write(mmio.CONFIG + 4, 4, 128)
        assert device.size == 0x80000
        assert before - resident(region) == 0x80000
        assert device.released == 0x80000
        assert bytes(machine.memory.read(0x37FFFF, 2)) == b"\0\xaa"
        machine.ask(1, pages(0x300))
        machine.memory.write(0x300000, b"again")


@pytest.mark.parametrize("request_", [b"abc", pages(RAM // PAGE), pages(0xFFFFFFFF), pages(*[0] * 1025)])
def test_a_balloon_outside_of_memory_ends_the_guest(request_: bytes) -> None:
    with balloon() as (machine, _device, _region):
        machine.start()
        with pytest.raises(GuestFault):
            machine.ask(0, request_)


def test_free_pages_are_dropped() -> None:
    with balloon() as (machine, device, region):
        machine.start()
        before = resident(region)
        ring = machine.rings[3]
        ring.add([], [(0x200000, 0x80000), (0x300000, 0x80000), (0x280800, 100)])
        machine.kick(3)
        until(ring.collect, machine)
        assert before - resident(region) == 0x100000
        assert device.released == 0x100000


@pytest.mark.parametrize(("poison", "dropped"), [(0, 0), (0xAAAAAAAA, 0), (None, 0x1000)])
def test_free_pages_of_a_private_file_are_dropped_only_where_nobody_counts_on_them(
    poison: int | None, dropped: int
) -> None:
    fd = memfd("snapshot", RAM)
    os.pwrite(fd, b"old", 0x200000)
    with balloon(Region(0, RAM, fd=fd), 0 if poison is not None else 1 << PAGE_POISON) as (machine, device, _region):
        machine.start()
        if poison is not None:
            machine.transport.write(mmio.CONFIG + 12, 4, poison)
        machine.memory.write(0x200000, b"new")
        machine.rings[3].add([], [(0x200000, 0x1000)])
        machine.kick(3)
        until(machine.rings[3].collect, machine)
        assert device.released == dropped
        assert bytes(machine.memory.read(0x200000, 3)) == (b"old" if dropped else b"new")


def test_statistics_are_asked_for() -> None:
    with balloon() as (machine, device, _region):
        machine.start()
        assert device.statistics(machine.loop, 0.01) == {}
        ring = machine.rings[2]
        machine.memory.write(0x1000, struct.pack("<HQHQHQ", 4, 1000, 5, 4000, 99, 1))
        ring.add([(0x1000, 30)], [])
        machine.kick(2)
        until(lambda: device._held)
        assert device.statistics(machine.loop, 0.01) == {"free": 1000, "total": 4000}
        assert len(ring.collect()) == 1, "given back to be filled anew"
        assert device.statistics(machine.loop, 0.01)["free"] == 1000, "the last known"
        ring.add([(0x1000, 30)], [])
        machine.kick(2)
        until(lambda: device._held)
        machine.transport.save()
        until(lambda: device._held)
        assert ring.collect() == [], "as before"


def test_queues_are_counted_by_what_was_agreed() -> None:
    with balloon(without=1 << STATS_VQ) as (machine, device, _region):
        machine.start(queues=3)
        machine.rings[2].add([], [(0x200000, 0x1000)])
        machine.kick(2)
        until(machine.rings[2].collect, machine)
        assert device.released == 0x1000
    with balloon(without=1 << STATS_VQ | 1 << PAGE_REPORTING | 1 << EVENT_IDX) as (machine, _device, _region):
        machine.start(queues=4)
        machine.kick(3)
        machine.ask(0, pages(0x200))


def test_runs() -> None:
    assert list(runs([])) == []
    assert list(runs([1, 2, 2, 3, 5, 7, 8])) == [(1, 3), (5, 1), (7, 2)]


# Pmem


def test_a_flush_reaches_the_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        region = Region(64 << 20, 1 << 20, fd=os.dup(file.fileno()), shared=True, kind=PMEM)
        with guest(Pmem(region), memory=Memory((shared_region(0, RAM), region))) as machine:  # type: ignore[arg-type]
            machine.start()
            assert machine.transport.read(mmio.CONFIG, 8) == 64 << 20
            assert machine.transport.read(mmio.CONFIG + 8, 8) == 1 << 20
            machine.memory.write(64 << 20, b"kept")
            assert machine.ask(0, bytes(4), 4) == (bytes(4), 4)
            assert machine.ask(0, b"\1\0\0\0", 4)[0] == b"\1\0\0\0", "an unknown request"
            assert machine.ask(0, b"", 4)[0] == b"\1\0\0\0"
            assert os.pread(file.fileno(), 4, 0) == b"kept"
            for _ in range(3):
                machine.memory.write(0x1000, bytes(4))
                machine.rings[0].add([(0x1000, 4)], [(0x11000, 4)])
                machine.kick(0)
                machine.transport.save()
                assert len(machine.rings[0].collect()) <= 1


def test_a_flush_that_fails_is_told() -> None:
    region = shared_region(64 << 20, 1 << 20)
    (reader, writer), file = os.pipe(), region.fd
    region.fd = writer  # which cannot be flushed
    with guest(Pmem(region), memory=Memory((shared_region(0, RAM), region))) as machine:  # type: ignore[arg-type]
        machine.start()
        assert machine.ask(0, bytes(4), 4)[0] == b"\1\0\0\0"
        machine.write(mmio.STATUS, 0)
        region.fd = file
    os.close(reader)
    os.close(writer)


def test_what_is_private_needs_no_flush() -> None:
    region = Region(64 << 20, 1 << 20, kind=PMEM)
    with guest(Pmem(region), memory=Memory((shared_region(0, RAM), region))) as machine:  # type: ignore[arg-type]
        machine.start()
        assert machine.ask(0, bytes(4), 4) == (bytes(4), 4)
