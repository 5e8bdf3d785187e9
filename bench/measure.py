"""Pairs, not figures: contestants take turns, and what counts is the ratio of their medians.

A machine that others use too slows everybody down at once. Taking turns lets every contestant meet the same
minutes; the order is turned each round, so that nobody always runs after the same neighbour.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Contestant = Callable[[], float | None]  # one turn: what it took, or None: the clock decides


class Row(NamedTuple):
    """One line of the table: our samples first, then each peer's; ``missing`` names peers that are not here."""

    name: str
    what: str
    unit: str
    budget: float  # ours divided by the peer it is judged by, at most
    judged_by: str  # each: every peer; fastest, smallest: the best one
    samples: Mapping[str, Sequence[float]]
    missing: Sequence[str] = ()
    reported: Sequence[str] = ()  # shown beside the peers, judged by nobody

    @property
    def ours(self) -> float:
        """Our median."""
        return statistics.median(self.samples["mamushka"])

    def ratios(self) -> dict[str, float]:
        """Ours divided by each peer's median."""
        return {
            name: self.ours / statistics.median(samples)
            for name, samples in self.samples.items()
            if name != "mamushka" and statistics.median(samples) > 0
        }

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; None where no peer is here to tell."""
        ratios = [ratio for name, ratio in self.ratios().items() if name not in self.reported]
        return max(ratios) <= self.budget if ratios else None


def alternate(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Let each take ``rounds`` turns after one that does not count; seconds, or what a turn returned."""
    for turn in contestants.values():
        turn()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.perf_counter()
            taken = contestants[name]()
            samples[name].append(time.perf_counter() - begin if taken is None else taken)
    return samples


def command(*words: str, environment: Mapping[str, str] | None = None) -> Contestant:
    """A program run to its end by posix_spawn, with nothing around it; a failure stops the benchmark."""
    merged = {**os.environ, **(environment or {})}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]

    def turn() -> None:
        pid = os.posix_spawn(words[0], words, merged, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        if status:
            said = subprocess.run(words, env=merged, capture_output=True, text=True, check=False)
            raise RuntimeError(f"{' '.join(words)}: exit {os.waitstatus_to_exitcode(status)}: {said.stderr.strip()}")

    return turn


def proportional(pid: int) -> int:
    """A process's proportional set size: bytes of its own, and its share of what it shares."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
