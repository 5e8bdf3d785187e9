"""``python -m bench [ROW …]``: the table, and the raw samples as JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

from bench import world as worlds
from bench.measure import Row
from bench.rows import ROWS


def main() -> int:
    """Run the rows that were asked for; 1 when a promise is broken, 2 when a row could not be run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=40, help="turns of each contestant (default 40)")
    parser.add_argument("--json", default="build/bench.json", help="where the raw samples go (default %(default)s)")
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: engines are measured with all their namespaces")
    names = given.rows or list(ROWS)
    if worlds.INSIDE not in os.environ:
        if "pull" in names:
            worlds.prepare_real_image()
        worlds.enter()
    worlds.leave_init_to_reap()
    found, failures = _measure(names, given.rounds)
    _keep(found, given.json)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 2 if failures else int(any(row.kept is False for row in found))


def _measure(names: list[str], rounds: int) -> tuple[list[Row], list[str]]:
    found, failures = [], []
    with worlds.world() as world:
        for name in names:
            try:
                row = ROWS[name](world, rounds)
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            found.append(row)
            print(_line(row), flush=True)
    return found, failures


def _line(row: Row) -> str:
    """One row for a person: medians, ratios, the verdict."""
    cells = [f"{name} {_figure(statistics.median(samples), row.unit)}" for name, samples in row.samples.items()]
    ratios = [f"{ratio:.2f}x {name}" for name, ratio in row.ratios().items()]
    verdict = {True: "kept", False: "BROKEN", None: "no peer here"}[row.kept]
    absent = f"  (not installed: {', '.join(row.missing)})" if row.missing else ""
    return (
        f"{row.name:8} {row.what}\n         {'  '.join(cells)}\n"
        f"         {'  '.join(ratios)}  budget {row.budget:g}x: {verdict}{absent}"
    )


def _figure(number: float, unit: str) -> str:
    if unit == "B":
        return f"{number / 1024:.0f} KiB"
    return f"{number * 1000:.1f} ms" if number < 10 else f"{number:.1f} s"


def _keep(found: list[Row], path: str) -> None:
    document = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "kernel": os.uname().release,
            "architecture": os.uname().machine,
            "processors": os.cpu_count(),
            "python": sys.version.split()[0],
        },
        "rows": {row.name: {"unit": row.unit, "budget": row.budget, "samples": row.samples} for row in found},
    }
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as file:
        json.dump(document, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
