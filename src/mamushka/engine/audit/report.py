"""What an audit answers: findings, a score for each axis, and the same as a document."""

from __future__ import annotations

from mamushka.engine.audit.probe import AXES
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.audit.probe import Ground, Probe, Seen

FULL = 100
VERSION = 1  # of the document; a field that changes its meaning changes it, a new one does not


@value
class Finding:
    """How one probe went; ``seen`` is what it reached, empty where it reached nothing."""

    probe: str
    axis: str
    weight: int
    title: str
    seen: str
    why: str
    close: str

    @property
    def reached(self) -> bool:
        """Whether it got anything."""
        return bool(self.seen)


@value
class Report:
    """One audited wall."""

    runtime: str
    image: str
    findings: tuple[Finding, ...]

    def axis(self, name: str) -> int:
        """An axis's score: the weights of what was reached, 100 at most; 0 is nothing."""
        return min(FULL, sum(item.weight for item in self.findings if item.axis == name and item.seen))

    @property
    def axes(self) -> dict[str, int]:
        """Every axis's score."""
        return {name: self.axis(name) for name in AXES}

    @property
    def score(self) -> int:
        """The axes' mean, rounded up: 0 means that nothing was reached at all."""
        return -(-sum(self.axes.values()) // len(AXES))

    @property
    def reached(self) -> tuple[Finding, ...]:
        """The findings that reached something."""
        return tuple(item for item in self.findings if item.seen)

    def document(self) -> dict[str, Any]:
        """As JSON has it: docs/guides/audit.md describes the fields."""
        findings = [
            {
                "probe": item.probe, "axis": item.axis, "weight": item.weight, "title": item.title,
                "reached": item.reached, "seen": item.seen, "why": item.why, "close": item.close,
            }
            for item in self.findings
        ]  # fmt: skip
        return {
            "version": VERSION, "runtime": self.runtime, "image": self.image, "score": self.score, "axes": self.axes,
            "findings": findings,
        }  # fmt: skip


def finding(probe: Probe, seen: Seen, ground: Ground) -> Finding:
    """A probe's finding, from what was seen."""
    return Finding(probe.name, probe.axis, probe.weight, probe.title, probe.judge(seen, ground), probe.why, probe.close)
