"""The figures of mini-guests of which everything is known: how often they leave, for what, and what they wrote."""

from __future__ import annotations

import threading
import time

from mamushka.machine.executors.kvm.probe import probe
from mamushka.machine.statistics import glance, rates, take
from tests.integration.machine.guests import assemble, machine, needs_kvm, protected

pytestmark = needs_kvm

WRITES = 500
PAGES = 64
GUEST = f"""
    mov ecx, {WRITES}
    mov dx, 0x600
again:
    out dx, al
    loop again
    mov edi, 0x10000
    mov ecx, {PAGES}
touch:
    mov [edi], eax
    add edi, 4096
    loop touch
    hlt
"""


def test_exits_are_counted_by_the_kernel_and_by_us() -> None:
    with machine(assemble(GUEST), interrupts=False) as made:
        before = take(made)
        made.start(protected())
        assert made.wait(20) is not None
        after = take(made)
        figures = rates(before, after)
        assert round(figures.exits * figures.seconds) >= WRITES + 1
        assert round(figures.user_by_kind["Write"] * figures.seconds) == WRITES
        assert round(figures.halts * figures.seconds) == 1
        assert figures.user_share > 0.5
        if probe().usable:  # a KVM in software interprets the guest's kernel, and counts neither of these
            assert round(figures.by_class["port"] * figures.seconds) == WRITES
            assert figures.faults > 0 and figures.faults_fixed > 0
        else:
            assert round(figures.emulated * figures.seconds) >= WRITES
        assert PAGES * 4096 <= figures.memory.guest_private - before.memory.guest_private <= (PAGES + 8) * 4096
        assert 1 << 20 < figures.memory.monitor_pss < 1 << 30


def test_a_glance_tells_a_guest_that_works_from_one_that_sleeps_and_one_that_holds_still() -> None:
    with machine(assemble("mov dx, 0x600\nagain: out dx, al\n jmp again"), interrupts=False) as made:
        made.start(protected())
        busy = glance(made, 0.2)
        assert busy.startswith("it is running and left ") and int(busy.split()[5]) > 100
        made.pause()
        assert glance(made, 0.05) == "it is paused and left 0 times a second"
    with machine(assemble("again: hlt\n jmp again")) as made:
        made.executor.counts()  # as a monitor does: later a virtual CPU that sleeps would keep it waiting
        made.start(protected())
        time.sleep(0.05)
        assert int(glance(made, 0.2).split()[5]) < 100


def test_a_guest_that_sleeps_keeps_nobody_waiting() -> None:
    """A virtual CPU hands its counters over only while it does not run, and one that sleeps in the kernel runs."""
    with machine(assemble("again: hlt\n jmp again")) as made:
        assert made.executor.counts()
        made.start(protected())
        time.sleep(0.05)
        told: list[dict[str, int]] = []
        asking = threading.Thread(target=lambda: told.append(made.executor.counts()), daemon=True)
        asking.start()
        asking.join(5)
        assert told and told[0]["exits"] >= 0


def test_counters_of_each_virtual_cpu_and_histograms() -> None:
    from mamushka.linux.kvm_stats import Statistics

    with machine(assemble("hlt"), interrupts=False) as made:
        statistics = Statistics(made.vcpus[0].fd)  # type: ignore[attr-defined]
        try:
            assert "exits" in statistics.read() and len(statistics.histogram("halt_wait_hist")) > 1
        finally:
            statistics.close()
