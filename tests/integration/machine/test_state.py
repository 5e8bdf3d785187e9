"""Machines are written down, go on elsewhere, and are forked: mini-guests that count."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from mamushka.errors import Conflict, Invalid
from mamushka.machine import state
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import Machine
from mamushka.machine.memory import Memory, shared_region
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
    saved, fd = state.capture(parent, {}), state.freeze(parent)
    parent.resume()
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
    grandchild = again(saved, later)
    assert bytes(grandchild.memory.read(0x6000, 5)) == b"later"
    assert bytes(grandchild.memory.read(SIZE - 4096, 13)) == b"the last page"
    grandchild.start()
    assert counts_on(grandchild)
    for machine in (grandchild, *children, parent):
        machine.close()
    os.close(fd)
    os.close(later)


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
    """The figure is the benchmark's (bench/); here only that it does not grow with memory."""
    parent = running(assemble("again: mov dx, 0x600\n out dx, al\n jmp again"))
    parent.pause()
    saved, fd = state.capture(parent, {}), state.freeze(parent)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        child = again(saved, fd)
        child.vcpus[0].run()
        times.append(time.perf_counter() - begin)
        child.close()
    print(f"{statistics.median(times) * 1e3:.2f} ms")
    parent.close()
    os.close(fd)
