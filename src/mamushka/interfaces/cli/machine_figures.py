"""A machine's figures as people read them: Popek and Goldberg's three demands, one after the other."""

from __future__ import annotations

from mamushka.interfaces.cli.table import show as show_table
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mamushka.machine.statistics import Figures, Sample

HEADERS = {"Figure": "FIGURE", "Value": "VALUE", "Meaning": "MEANING"}

# Of ``mamushka stats``, for machines alone.
COLUMNS = {
    "Exits": "EXITS/S", "UserExits": "TO PYTHON/S", "UserShare": "PYTHON %", "Emulated": "EMULATED/S",
    "Faults": "PAGE FAULTS/S", "Private": "PRIVATE MEM",
}  # fmt: skip


def row(figures: Figures | None) -> dict[str, str]:
    """The columns of one machine; of a workload that is none, or of which nothing is known, they are empty."""
    if figures is None:
        return dict.fromkeys(COLUMNS, "--")
    return {
        "Exits": f"{figures.exits:.0f}",
        "UserExits": f"{figures.user:.1f}",
        "UserShare": f"{100 * figures.user_share:.2f}%",
        "Emulated": f"{figures.emulated:.0f}",
        "Faults": f"{figures.faults_fixed:.0f}",
        "Private": units.human_bytes(figures.memory.guest_private),
    }


def document(figures: Figures) -> dict[str, Any]:
    """All of them, for programs: rates are per second, memory is bytes, shares are between 0 and 1."""
    memory = figures.memory
    return {
        "Seconds": figures.seconds,
        "Exits": figures.exits,
        "ExitsByClass": dict(figures.by_class),
        "UserExits": figures.user,
        "UserExitsByKind": dict(figures.user_by_kind),
        "UserShare": figures.user_share,
        "Emulated": figures.emulated,
        "EmulatedShare": figures.emulated_share,
        "Halts": figures.halts,
        "PageFaults": figures.faults,
        "PageFaultsFixed": figures.faults_fixed,
        "Interrupts": figures.interrupts,
        "GuestPrivate": memory.guest_private,
        "GuestPss": memory.guest_pss,
        "MonitorPss": memory.monitor_pss,
    }


def show(before: Sample, after: Sample, format: str) -> None:
    """What happened between two samples of one machine."""
    from mamushka.machine.statistics import rates

    figures = rates(before, after)
    if format in ("", "table"):
        show_table(
            ({"Figure": name, "Value": said, "Meaning": why} for name, said, why in _lines(figures)), HEADERS, ""
        )
    else:
        show_table([document(figures)], HEADERS, format)


def _lines(figures: Figures) -> Iterator[tuple[str, str, str]]:
    yield "exits/s", f"{figures.exits:.1f}", "efficiency: how often the processor left the guest"
    for name, rate in figures.by_class.items():
        if rate:
            yield f"  {name}", f"{rate:.1f}", ""
    yield "to Python/s", f"{figures.user:.1f}", "efficiency: exits that this host's kernel did not answer itself"
    for name, rate in figures.user_by_kind.items():
        if rate:
            yield f"  {name}", f"{rate:.1f}", ""
    yield "share to Python", f"{100 * figures.user_share:.2f}%", "efficiency: of all exits"
    share = figures.emulated_share
    yield "emulated/s", f"{figures.emulated:.1f}", "efficiency, equivalence: instructions that KVM interpreted"
    if share is not None:
        yield "emulated share", f"{100 * share:.4f}%", "efficiency: of all instructions"
    yield "halts/s", f"{figures.halts:.1f}", "the guest had nothing to do"
    yield "interrupts/s", f"{figures.interrupts:.1f}", "that the guest was given"
    yield "page faults/s", f"{figures.faults_fixed:.1f}", "control: memory that the guest asked for and was given"
    memory = figures.memory
    yield "private memory", units.human_bytes(memory.guest_private), "control: of the guest's, shared with nobody"
    yield "guest's memory", units.human_bytes(memory.guest_pss), "its share of what it uses"
    yield "monitor's memory", units.human_bytes(memory.monitor_pss), "what this process takes beside it"
