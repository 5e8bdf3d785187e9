"""The transport and the rings, against a driver that does as Linux does."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import GuestFault, Invalid
from mamushka.machine.bus import Bus
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.queue import EVENT_IDX, INDIRECT, INDIRECT_DESC, NEXT, WRITE, Chain, Queue
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.memory import Memory, Region, shared_region
from tests.virtio import RAM, Line, Ring, guest

EVENTS, INDIRECTS = 1 << EVENT_IDX, 1 << INDIRECT_DESC


class Echo(Device):
    """Gives back what it was given."""

    device_id = 42
    queues = ("first", "second")
    features = 1 << 5 | 1 << 40

    def __init__(self) -> None:
        self.content = bytearray(b"configuration")
        self.threads: set[str] = set()
        self.kept = b""

    def config(self) -> bytes:
        return bytes(self.content)

    def configure(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def notify(self, index: int) -> None:
        self.threads.add(threading.current_thread().name)
        queue = self.started[index]
        for chain in queue.serve():
            queue.push(chain, chain.fill(chain.take(chain.readable_length)))
        queue.signal()

    def save(self) -> dict[str, bytes]:
        return {"kept": b"its own"}

    def restore(self, state: object) -> None:
        self.kept = state["kept"]  # type: ignore[index]


class Executor:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.mapped: list[Region] = []
        self.bells: list[tuple[int, int, int, int]] = []

    def map(self, region: Region) -> None:
        self.mapped.append(region)

    def doorbell(self, *bell: int) -> bool:
        self.bells.append(bell)  # type: ignore[arg-type]
        return True


def test_what_a_driver_finds() -> None:
    with guest(Echo()) as machine:
        assert machine.read(mmio.MAGIC) == 0x74726976
        assert (machine.read(mmio.VERSION), machine.read(mmio.DEVICE_ID)) == (2, 42)
        assert machine.offered() == 1 << 5 | 1 << 40 | 1 << 32 | EVENTS | INDIRECTS
        assert [machine.transport.read(mmio.CONFIG + at, 1) for at in range(3)] == list(b"con")
        machine.write(mmio.QUEUE_SEL, 1)
        assert machine.read(mmio.QUEUE_NUM_MAX) == 256
        machine.write(mmio.QUEUE_SEL, 2)
        assert machine.read(mmio.QUEUE_NUM_MAX) == 0
        machine.write(0x0AC, 0)
        assert machine.read(mmio.SHM_LEN) == machine.read(mmio.SHM_LEN + 4) == 0xFFFFFFFF
        assert machine.transport.read(0xFFF, 8) == 0


def test_a_late_device_is_an_empty_place_until_it_is_revealed() -> None:
    """A driver that looks meanwhile passes it by, and finds all of it afterwards."""
    with guest(Echo()) as machine:
        machine.transport.hide()
        assert machine.read(mmio.MAGIC) == 0x74726976 and machine.read(mmio.DEVICE_ID) == 0
        machine.transport.reveal()
        assert machine.read(mmio.DEVICE_ID) == 42
        machine.start()
        assert machine.ask(0, b"there", 5)[0] == b"there"


@pytest.mark.parametrize("without", [0, EVENTS, INDIRECTS, EVENTS | INDIRECTS])
def test_requests_are_answered_in_the_loops_thread(without: int) -> None:
    device = Echo()
    with guest(device, without=without) as machine:
        machine.start()
        for turn in range(200):  # more than the ring is deep
            request = b"%d" % turn
            assert machine.ask(turn % 2, request, 100)[0][: len(request)] == request
        assert device.threads == {"devices"}
        assert machine.interrupt() == mmio.USED_BUFFER


def test_a_status_out_of_order_is_not_taken() -> None:
    with guest(Echo()) as machine:
        machine.write(mmio.STATUS, mmio.DRIVER_OK)
        assert machine.read(mmio.STATUS) == 0
        machine.write(mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER | mmio.FEATURES_OK)
        assert machine.read(mmio.STATUS) == mmio.ACKNOWLEDGE | mmio.DRIVER, "without VERSION_1 nothing is agreed"
        machine.write(mmio.STATUS, machine.read(mmio.STATUS) | mmio.DRIVER_OK)
        assert machine.device.started == ()
        machine.write(mmio.STATUS, machine.read(mmio.STATUS) | mmio.FAILED)
        assert machine.read(mmio.STATUS) & mmio.FAILED
        machine.negotiate()


def test_features_that_were_not_offered_are_refused() -> None:
    with guest(Echo()) as machine:
        machine.write(mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER)
        machine.write(mmio.DRIVER_FEATURES_SEL, 1)
        machine.write(mmio.DRIVER_FEATURES, 0xFF)
        machine.write(mmio.STATUS, 0xB)
        assert not machine.read(mmio.STATUS) & mmio.FEATURES_OK


def test_a_reset_stops_and_a_driver_may_begin_again() -> None:
    with guest(Echo()) as machine:
        machine.start()
        machine.ask(0, b"x", 1)
        machine.write(mmio.STATUS, 0)
        assert (machine.read(mmio.STATUS), machine.read(mmio.INTERRUPT_STATUS), machine.device.started) == (0, 0, ())
        machine.kick(0)  # to nobody
        machine.rings = [machine.ring(index, machine.negotiate()) for index in range(1)]
        machine.write(mmio.STATUS, 0xF)
        assert machine.ask(0, b"again", 5)[0] == b"again"
        assert machine.device.started[1].depth == 0, "the second was not set up"
        machine.kick(1)
        assert machine.ask(0, b"still", 5)[0] == b"still"


class Nothing(Device):
    """What stands in a place that is vacant."""

    device_id = 0
    queues = Echo.queues


class Closed(Echo):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_device_may_be_exchanged_for_another_and_each_is_closed_once() -> None:
    first, second = Closed(), Closed()
    second.content[:] = b"something else"
    second.features = 1 << 7
    with guest(first) as machine:
        machine.start()
        machine.ask(0, b"x", 1)
        machine.transport.exchange(Nothing())  # its driver has not let go of it
        assert first.closed == 1 and first.started == ()
        assert (machine.read(mmio.DEVICE_ID), machine.read(mmio.STATUS)) == (0, 0)
        machine.kick(0)  # to nobody
        machine.transport.exchange(second)
        assert machine.read(mmio.DEVICE_ID) == 42
        assert machine.transport.read(mmio.CONFIG, 4) == int.from_bytes(b"some", "little")
        assert machine.offered() & ~(EVENTS | INDIRECTS | 1 << 32) == 1 << 7
        machine.device = second
        machine.again()
        assert machine.ask(0, b"again", 5)[0] == b"again"
        second.content[:4] = b"SOME"
        machine.loop.call(second.changed)
        assert machine.transport.read(mmio.CONFIG, 4) == int.from_bytes(b"SOME", "little")
    assert (first.closed, second.closed) == (1, 1)


def test_a_changed_configuration_is_told() -> None:
    with guest(device := Echo()) as machine:
        machine.start()
        before = machine.read(mmio.CONFIG_GENERATION)
        device.content[:3] = b"CON"
        machine.loop.call(device.changed)
        assert machine.read(mmio.CONFIG_GENERATION) != before
        assert machine.line.wait()
        assert machine.interrupt() == mmio.USED_BUFFER | mmio.CONFIG_CHANGED
        assert machine.read(mmio.INTERRUPT_STATUS) == mmio.USED_BUFFER
        machine.transport.write(mmio.CONFIG + 1, 2, 0x4141)
        assert machine.transport.read(mmio.CONFIG, 4) == int.from_bytes(b"CAAf", "little")


def test_the_window_is_the_page_that_reads_see() -> None:
    with guest(Echo()) as machine:
        executor, bus = Executor(), Bus("memory")
        machine.transport.attach(0xD0000000, bus, executor)  # type: ignore[arg-type]
        machine.start()
        (window,) = executor.mapped
        for offset in (mmio.MAGIC, mmio.STATUS, mmio.INTERRUPT_STATUS, mmio.CONFIG, mmio.CONFIG_GENERATION):
            assert struct.unpack_from("<I", window.view, offset)[0] == bus.read(0xD0000000 + offset, 4)
        assert window.view.readonly
        assert [item[:3] for item in executor.bells] == [(0xD0000050, 4, 0), (0xD0000050, 4, 1), (0xD0000064, 4, 1)]


def test_doorbells_are_heard_without_a_write() -> None:
    with guest(Echo()) as machine:
        machine.start()
        bells = machine.transport.doorbells()
        assert [item[:3] for item in bells] == [(0x50, 4, 0), (0x50, 4, 1), (0x64, 4, 1)]
        machine.memory.write(0x1000, b"by bell")
        machine.rings[1].add([(0x1000, 7)], [(0x2000, 7)])
        os.eventfd_write(bells[1][3], 1)
        assert machine.line.wait()
        assert bytes(machine.memory.read(0x2000, 7)) == b"by bell"


def test_a_queue_that_is_carried_elsewhere_is_not_heard_here() -> None:
    class Carried(Echo):
        def start(self, queues: object, features: int, loop: object) -> None:
            super().start(queues, features, loop)  # type: ignore[arg-type]
            self.started[0].carried = True

    with guest(Carried()) as machine:
        machine.start()
        bell = machine.device.started[0].bell
        machine.kick(0)
        assert os.eventfd_read(bell) == 1
        assert machine.device.started[0].line.fd == machine.line.fd
        assert machine.ask(1, b"y", 1)[0] == b"y"


def test_more_descriptors_than_offered_end_the_guest() -> None:
    with guest(Echo()) as machine:
        machine.negotiate()
        machine.write(mmio.QUEUE_SEL, 0)
        with pytest.raises(GuestFault):
            machine.write(mmio.QUEUE_NUM, 512)


def test_rings_outside_of_memory_end_the_guest() -> None:
    with guest(Echo()) as machine:
        machine.negotiate()
        machine.ring(0, 0)
        machine.write(mmio.QUEUE_READY, 0)
        machine.write(mmio.QUEUE_DESC + 4, 1)
        machine.write(mmio.QUEUE_READY, 1)
        machine.loop.start()
        with pytest.raises(GuestFault):
            machine.write(mmio.STATUS, 0xF)


def test_chains_that_belong_together_are_seen_together() -> None:
    """A driver that polls, on another processor, looks between any two of our steps."""
    _memory, ring, queue, _line = queue_of(0)
    for _ in range(3):
        ring.add([], [(0, 16)])
    chains = [chain for chain in (queue.pop() for _ in range(3)) if chain is not None]
    seen: list[int] = []

    def given() -> Iterator[tuple[Chain, int]]:
        for chain in chains:
            seen.append(queue.used_index())
            yield chain, 16
        seen.append(queue.used_index())

    queue.push_together(given())
    assert seen == [0, 0, 0, 0] and queue.used_index() == 3
    assert ring.collect() == [(chain.head, 16) for chain in chains]


def test_a_fault_in_a_request_ends_the_loop() -> None:
    with guest(Echo()) as machine:
        machine.start()
        machine.rings[0].add([(RAM, 1)], [])
        machine.kick(0)
        with pytest.raises(GuestFault, match="queue first of virtio device 42, chain 1 at 63, "):
            machine.ask(0, b"x", 1)


def test_nobody_waits_for_a_loop_that_has_ended() -> None:
    """A guest with two processors breaks a rule with one and writes registers with the other."""
    with guest(Echo()) as machine:
        machine.start()
        table = machine.rings[0].table
        machine.memory.write(table, b"\xff" * 16)
        machine.memory.write(machine.rings[0].available, struct.pack("<HHH", 0, 1, 0))
        machine.kick(0)
        while not machine.failures:
            machine.write(mmio.STATUS, 0xF)
        assert isinstance(machine.failures[0], GuestFault)
        machine.write(mmio.STATUS, 0)
        machine.transport.save()


def test_a_saved_device_goes_on_elsewhere() -> None:
    with guest(Echo()) as first, guest(Echo()) as second:
        first.start()
        for turn in range(70):
            first.ask(0, b"%d" % turn, 8)
        first.transport.write(mmio.CONFIG, 1, ord("C"))
        state = first.transport.save()
        first.loop.call(first.transport._stop)
        first.memory.write(0x1000, b"waiting")
        first.rings[0].add([(0x1000, 7)], [(0x2000, 7)])  # the bell of it is lost
        second.memory.write(0, first.memory.read(0, RAM))
        second.loop.start()
        second.transport.restore(state)
        assert second.line.wait()
        assert bytes(second.memory.read(0x2000, 7)) == b"waiting"
        assert second.device.kept == b"its own"  # type: ignore[attr-defined]
        assert second.read(mmio.STATUS) == 0xF
        assert second.read(mmio.CONFIG_GENERATION) > first.read(mmio.CONFIG_GENERATION)
        assert second.transport.save()["transport"] != state["transport"], "it has gone on"


def test_a_state_of_another_device_is_refused() -> None:
    with guest(Echo()) as first, guest(Rng()) as second, pytest.raises(Invalid):
        second.transport.restore(first.transport.save())


def test_features_that_are_not_offered_here_are_refused() -> None:
    with guest(Echo()) as first:
        first.start()
        state = first.transport.save()
    poorer = Echo()
    poorer.features = 1 << 5
    with guest(poorer) as second, pytest.raises(Invalid, match="0x10000000000 are not offered"):
        second.transport.restore(state)


def test_entropy() -> None:
    with guest(Rng()) as machine:
        machine.start()
        first, count = machine.ask(0, room=64)
        assert count == 64
        assert machine.ask(0, room=64)[0] != first
        assert machine.ask(0, room=40000)[1] == 4096, "bounded"
        assert machine.ask(0, b"nothing to fill")[1] == 0


# Rings alone


def queue_of(features: int = EVENTS | INDIRECTS, depth: int = 8) -> tuple[Memory, Ring, Queue, Line]:
    memory = Memory((shared_region(0, 1 << 20),))
    ring, line = Ring(memory, 0x20000, depth, features), Line()
    return memory, ring, Queue(memory, depth, *ring.parts, features, line), line


def test_interrupts_only_where_they_are_wanted() -> None:
    _memory, ring, queue, line = queue_of()
    for turn in range(3):
        for _ in range(4):
            ring.add([(0, 1)], [])
        for chain in queue.serve():
            queue.push(chain)
        queue.signal()
        queue.signal()
        assert line.fired == turn + 1, "one for many, and none for nothing"
        ring.collect()
    for _ in range(2):  # the driver has not looked since: it asked for the first alone
        ring.add([(0, 1)], [])
        for chain in queue.serve():
            queue.push(chain)
        queue.signal()
    assert line.fired == 4


def test_doorbells_only_where_they_are_wanted() -> None:
    _memory, ring, queue, _line = queue_of()
    assert queue.pop() is None
    ring.add([(0, 1)], [])
    assert ring.wants_kick(0)
    ring.add([(0, 1)], [])
    assert not ring.wants_kick(1), "it was rung for the first"
    assert len(list(queue.serve())) == 2
    ring.add([(0, 1)], [])
    assert ring.wants_kick(2)


def test_the_counters_wrap() -> None:
    _memory, ring, queue, line = queue_of(depth=4)
    for _ in range(70000 // 2):
        ring.add([(0, 1)], [])
        ring.add([(0, 1)], [])
        for chain in queue.serve():
            queue.push(chain, 0)
        queue.signal()
        assert len(ring.collect()) == 2
    assert line.fired == 35000


def test_a_chain_may_end_in_an_indirect_table() -> None:
    """2.7.5.3.2: the device must take normal descriptors that are followed by one with a table."""
    memory, ring, queue, _line = queue_of()
    memory.write(0x100, b"head")
    ring.add([(0x100, 4), (0, 0)], [])
    first, last = next(iter(ring.chains.values()))
    memory.write(0x5000, struct.pack("<QIHHQIHH", 0x200, 4, NEXT, 1, 0x300, 4, WRITE, 0))
    ring.describe(first, 0x100, 4, NEXT, last)
    ring.describe(last, 0x5000, 32, INDIRECT, 0)
    memory.write(0x200, b"tail")
    chain = queue.pop()
    assert chain is not None
    assert chain.take(8) == b"headtail"
    assert chain.writable_length == 4


def test_a_chain_that_was_put_back_comes_again() -> None:
    _memory, ring, queue, _line = queue_of()
    head = ring.add([(0, 1)], [])
    for _ in range(3):
        chain = queue.pop()
        assert chain is not None
        assert chain.head == head
        queue.unpop()
    assert len(list(queue.serve())) == 1


def test_who_never_stops_gives_others_their_turn() -> None:
    _memory, ring, queue, _line = queue_of(depth=4)
    queue.bell = os.eventfd(0, os.EFD_NONBLOCK)
    ring.add([(0, 1)], [])
    served = 0
    for chain in queue.serve():
        served += 1
        queue.push(chain)
        ring.collect()
        ring.add([(0, 1)], [])
    assert served == 4
    assert os.eventfd_read(queue.bell) == 1, "the rest is not forgotten"
    os.close(queue.bell)


@pytest.mark.parametrize(
    ("flags", "length", "features"),
    [
        (INDIRECT | NEXT, 16, INDIRECTS),
        (INDIRECT, 16, 0),
        (INDIRECT, 15, INDIRECTS),
        (INDIRECT, 0, INDIRECTS),
        (INDIRECT, 16 * 9, INDIRECTS),
        (NEXT, 1, INDIRECTS),  # follows itself
    ],
)
def test_chains_that_break_a_rule(flags: int, length: int, features: int) -> None:
    _memory, ring, queue, _line = queue_of(features)
    head = ring.add([(0, 1)], [])
    ring.describe(head, 0x5000, length, flags, head)
    with pytest.raises(GuestFault):
        queue.pop()


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=16 * 8),
    st.binary(max_size=6 + 16),
    st.binary(max_size=256),
    st.sampled_from((0, EVENTS | INDIRECTS)),
)
def test_any_ring_is_served_or_a_fault(table: bytes, available: bytes, indirect: bytes, features: int) -> None:
    memory, ring, queue, line = queue_of(features)
    try:
        # Addresses and lengths mostly within memory, so that damage gets further in.
        memory.write(
            ring.table, bytes(byte if at % 16 not in (3, 4, 5, 6, 7, 10, 11) else 0 for at, byte in enumerate(table))
        )
        memory.write(ring.available, available)
        memory.write(0, indirect)
        try:
            for count, chain in enumerate(queue.serve(), 1):
                assert count <= 8
                assert len(chain.readable) + len(chain.writable) <= 8
                queue.push(chain, chain.fill(bytes(10)))
            queue.signal()
        except GuestFault:
            pass
    finally:
        line.close()
        queue = chain = None  # type: ignore[assignment]
        memory.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(tuple(range(0, 0x110, 4))),
            st.sampled_from((1, 2, 4, 8)),
            st.one_of(st.integers(0, 16), st.integers(0, 2**32 - 1)),
        ),
        max_size=60,
    )
)
def test_any_writes_to_registers_are_taken_or_a_fault(writes: list[tuple[int, int, int]]) -> None:
    with guest(Echo()) as machine:
        try:
            for offset, size, value in writes:
                machine.transport.write(offset, size, value & (1 << 8 * size) - 1)
                machine.transport.read(offset, size)
        except GuestFault:
            return
        machine.start()


def seen_meanwhile(memory: memoryview, offset: int, size: int, write: Callable[[], None]) -> set[int]:
    """What another processor reads there, as a guest's would, while we write: no interpreter's lock is between."""
    words = memory[offset : offset + size].cast("H" if size == 2 else "I")
    reading, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        found, end = set(), time.monotonic() + 1
        while time.monotonic() < end:
            for _ in range(1000):
                found.add(words[0])
        os.write(telling, ",".join(map(str, sorted(found))).encode()[:4000])
        os._exit(0)
    os.close(telling)
    while not select.select([reading], [], [], 0)[0]:
        for _ in range(1000):
            write()
    with open(reading, "rb") as file:
        found = set(map(int, file.read().split(b",")))
    os.waitpid(pid, 0)
    return found


def test_an_index_changes_at_once() -> None:
    """A driver that looks while one is written must not see zero between: it would take what is not used for used."""
    memory, _, queue, _ = queue_of(depth=16)
    queue.restore(0x5554, 0x5554)
    chain = Chain(0)

    def push() -> None:
        queue.next_used = 0x5554
        queue.push(chain)

    def look() -> None:
        queue.next_available = 0x5555
        queue.pop()

    push()
    used = queue.addresses[2]
    view = memory.read(used, 6 + 8 * 16)
    assert seen_meanwhile(view, 2, 2, push) == {0x5555}
    memory.write(queue.addresses[1] + 2, (0x5555).to_bytes(2, "little"))
    look()
    assert seen_meanwhile(view, 4 + 8 * 16, 2, look) == {0x5555}


def test_a_register_changes_at_once() -> None:
    """The guest reads the page itself: an interrupt's status must not be zero for a moment."""
    with guest(Echo()) as machine:
        page = machine.transport._page
        machine.transport._show(mmio.INTERRUPT_STATUS, 3)
        found = seen_meanwhile(
            page, mmio.INTERRUPT_STATUS, 4, lambda: machine.transport._show(mmio.INTERRUPT_STATUS, 3)
        )
        assert found == {3}
