"""Machines are written down, go on elsewhere, and are forked: mini-guests that count."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from mamushka.errors import Conflict, Invalid
from mamushka.linux.memory import PAGEMAP
from mamushka.machine import state
from mamushka.machine.board import Board
from mamushka.machine.cage import Cage
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import Machine
from mamushka.machine.memory import Memory, Region, shared_region
from mamushka.machine.warm import Shelf
from tests import peers
from tests.integration.machine.guests import START, assemble, needs_kvm, protected
from tests.integration.machine.guests import machine as made_machine

pytestmark = needs_kvm

COUNTING = "again: inc dword ptr [0x4000]\n jmp again"
SIZE = 64 << 20


def running(code: bytes, size: int = SIZE) -> Machine:
    memory = Memory((shared_region(0, size),))
    memory.write(START, code)
    memory.write(size - 4096, b"the last page")
    made = Machine(KvmExecutor(), memory)
    made.start(protected())
    return made


def count_of(machine: Machine) -> int:
    return int.from_bytes(machine.memory.read(0x4000, 4), "little")


def counts_on(machine: Machine) -> bool:
    before, deadline = count_of(machine), time.monotonic() + 10
    while count_of(machine) == before:
        if time.monotonic() > deadline:
            return False
    return True


def again(saved: state.Saved, fd: int) -> Machine:
    made = Machine(KvmExecutor(), state.private_memory(saved, fd))
    state.reinstate(made, {}, saved)
    return made


def test_a_machine_in_a_directory_goes_on_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    first = running(assemble(COUNTING))
    assert counts_on(first)
    first.pause()
    count = count_of(first)
    state.write(state.capture(first, {}, {"name": "it"}), first.memory, str(tmp_path))
    first.close()
    assert os.stat(tmp_path / "memory").st_blocks * 512 < 1 << 20, "holes were written"
    content = (tmp_path / "memory").read_bytes()
    for _ in range(2):
        saved, fd = state.read(str(tmp_path))
        assert saved.labels == {"name": "it"}
        second = again(saved, fd)
        os.close(fd)
        assert count_of(second) == count
        assert bytes(second.memory.read(SIZE - 4096, 13)) == b"the last page"
        second.start()
        assert counts_on(second)
        second.close()
    assert (tmp_path / "memory").read_bytes() == content


def test_children_of_a_live_machine_share_what_nobody_changed_and_nothing_else() -> None:
    parent = running(assemble(COUNTING))
    assert counts_on(parent)
    parent.pause()
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    parent.resume()
    frozen.tidy()
    fd = frozen.fd
    children = [again(saved, fd) for _ in range(3)]
    base = bytes(os.pread(fd, 4096, 0x4000))
    for child in children:
        child.start()
    assert all(counts_on(machine) for machine in (parent, *children))
    children[0].memory.write(0x5000, b"mine")
    for other in (parent, *children[1:]):
        assert bytes(other.memory.read(0x5000, 4)) == bytes(4)
    assert os.pread(fd, 4096, 0x4000) == base, "what all share was changed"
    # Again, now that the parent has pages of its own.
    parent.pause()
    parent.memory.write(0x6000, b"later")
    saved, later = state.capture(parent, {}), state.freeze(parent)
    parent.resume()
    later.tidy()
    grandchild = again(saved, later.fd)
    assert bytes(grandchild.memory.read(0x6000, 5)) == b"later"
    assert bytes(grandchild.memory.read(SIZE - 4096, 13)) == b"the last page"
    grandchild.start()
    assert counts_on(grandchild)
    for machine in (grandchild, *children, parent):
        machine.close()
    frozen.close()
    later.close()


def test_to_be_frozen_again_takes_as_long_as_there_are_pages_changed_since() -> None:
    """What nobody changed is copied before, while it runs; also a page that was emptied meanwhile is right."""
    pagemap = os.open(PAGEMAP, os.O_RDONLY)
    parent = filled(256 << 20)
    for turn in range(3):
        ready = state.ready(parent)
        assert (ready >= 0) == (turn > 0), "the first time it is in one file as it is"
        parent.memory.write(0x200000 + 4096 * turn, bytes(4096))
        parent.memory.write(0x300000, b"turn %d" % turn)
        parent.pause()
        begin = time.process_time()
        saved, frozen = state.capture(parent, {}), state.freeze(parent, ready, pagemap)
        took = time.process_time() - begin
        parent.resume()
        frozen.tidy()
        print(f"{took * 1e3:.2f} ms")
        assert took < 0.1
        child = again(saved, frozen.fd)
        assert bytes(child.memory.read(0x200000 + 4096 * turn, 4096)) == bytes(4096)
        assert bytes(child.memory.read(0x200000 + 4096 * (turn + 1), 2)) == b"\1\1"
        assert bytes(child.memory.read(0x300000, 6)) == b"turn %d" % turn
        assert bytes(child.memory.read((256 << 20) - 4096, 13)) == b"the last page"
        for start in range(1 << 20, 256 << 20, 16 << 20):
            assert bytes(child.memory.read(start + 8192 * 8, 2)) == b"\1\1"
        child.start()
        assert counts_on(child) and counts_on(parent)
        child.close()
        frozen.close()
    parent.close()
    os.close(pagemap)


def test_a_copy_of_memory_has_no_pages_of_zeros() -> None:
    source, target = os.memfd_create("source"), os.memfd_create("target")
    size = 8 << 20
    os.ftruncate(source, size)
    os.pwrite(source, bytes(3 << 20) + b"there" + bytes(1 << 20), 0)
    os.pwrite(source, b"end", size - 3)
    state.copy_memory(source, target)
    assert os.pread(target, size + 1, 0) == os.pread(source, size, 0)
    assert os.fstat(target).st_blocks * 512 == 2 * 4096
    for fd in (source, target):
        os.close(fd)


def test_what_does_not_fit_is_refused() -> None:
    machine = running(assemble(COUNTING))
    with pytest.raises(Conflict, match="cannot save a machine that is running"):
        state.capture(machine, {})
    machine.pause()
    saved = state.capture(machine, {})
    machine.close()
    with made_machine(b"", vcpus=2) as two, pytest.raises(Invalid, match="saved with 1 virtual CPUs"):
        state.reinstate(two, {}, saved)
    assert state.load(state.dump(saved)) == saved
    with pytest.raises(Invalid, match="broken"):
        state.load(state.dump(saved).replace(b'"vcpus"', b'"others"'))


def test_a_clone_of_64_mib_makes_its_first_exit_in_milliseconds() -> None:
    """The figure is the benchmark's (bench/)."""
    parent = running(assemble("again: mov dx, 0x600\n out dx, al\n jmp again"))
    parent.pause()
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        child = again(saved, frozen.fd)
        child.vcpus[0].run()
        times.append(time.perf_counter() - begin)
        child.close()
    print(f"{statistics.median(times) * 1e3:.2f} ms")
    parent.close()
    frozen.close()


def mapped(region: Region) -> dict[str, int]:
    """What /proc/self/smaps says of a region, in KiB."""
    found: dict[str, int] = {}
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *rest = line.split()
            if not name.endswith(":"):
                inside = int(name.partition("-")[0], 16) == region.hva
            elif inside and rest[-1] == "kB":
                found[name[:-1]] = int(rest[0])
    return found


def filled(size: int) -> Machine:
    """One that has used all of its memory."""
    parent = running(assemble(COUNTING), size)
    (ram,) = parent.memory
    for start in range(1 << 20, size, 1 << 20):
        ram.view[start : start + (1 << 20) - 4096] = bytes([1]) * ((1 << 20) - 4096)
    return parent


def test_to_be_frozen_takes_as_long_with_much_memory_as_with_little() -> None:
    """Of a machine that uses all of it, which is the hard case: no page of it is visited."""
    seconds = {}
    for size in (64 << 20, 512 << 20):
        parent = filled(size)
        parent.pause()
        begin = time.process_time()  # others' work is not ours
        frozen = state.freeze(parent)
        seconds[size] = time.process_time() - begin
        parent.resume()
        frozen.tidy()
        assert counts_on(parent)
        assert bytes(parent.memory.read(size - (1 << 20), 2)) == b"\1\1"
        parent.close()
        frozen.close()
    print({size >> 20: f"{took * 1e3:.2f} ms" for size, took in seconds.items()})
    assert seconds[512 << 20] < seconds[64 << 20] + 0.005


def test_a_child_that_does_little_has_little_of_its_own() -> None:
    parent = filled(SIZE)
    parent.pause()
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    parent.resume()
    child = again(saved, frozen.fd)
    child.start()
    assert counts_on(child)
    (ram,) = child.memory
    assert mapped(ram)["Private_Dirty"] <= 2048
    for machine in (child, parent):
        machine.close()
    frozen.close()


def test_what_was_moved_aside_is_given_back() -> None:
    before = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(3):
        parent = running(assemble(COUNTING))
        parent.pause()
        state.freeze(parent).close()
        parent.close()
    after = len(Path("/proc/self/maps").read_text().splitlines())
    assert after <= before + 3  # threads' stacks that the C library keeps


def test_a_caged_monitor_writes_its_machine_down_and_freezes_it(tmp_path: Path) -> None:
    """Everything that it does for that is among what it may do: filters.py."""
    peers.need_root()
    blank = Shelf(str(tmp_path)).begin("k")
    assert blank is not None
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            memory = Memory((shared_region(0, SIZE),))
            memory.write(START, assemble(COUNTING))
            board = Board(KvmExecutor(), memory)
            board.add("rng", Rng())
            board.console(lambda text: None)
            pagemap = os.open(PAGEMAP, os.O_RDONLY)
            cage = Cage()
            cage.close()
            board.machine.start(protected(), confine=cage.enter)
            board.machine.pause()
            blank.fill(state.capture(board.machine, board.parts), memory)
            for _ in range(2):
                ready = state.ready(board.machine)
                frozen = state.freeze(board.machine, ready, pagemap)
                board.machine.resume()
                frozen.close()
                board.machine.pause()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    blank.close()
    found = Shelf(str(tmp_path)).take("k")
    assert found is not None
    memory = found.memory(shared=False)
    board = Board(KvmExecutor(), memory)
    board.add("rng", Rng())
    board.console(lambda text: None)
    state.reinstate(board.machine, board.parts, found.saved)
    found.close()
    board.machine.start()
    assert counts_on(board.machine)
    board.close()
