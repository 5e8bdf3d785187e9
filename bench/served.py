"""A process of its own that does one thing for each byte on its standard input, and answers how long that took.

So a contestant can live where the benchmark itself does not: in a program that has imported nothing else, or in a mount
namespace with other cgroups.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from bench.measure import command


def served(*words: str, wrapped: Sequence[str] = ()) -> Callable[[], float]:
    """Start ``python -m WORDS`` within the command ``wrapped``; a turn is what the process says it took."""
    program = subprocess.Popen([*wrapped, sys.executable, "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    orders, answers = program.stdin.fileno(), program.stdout.fileno()

    def turn() -> float:
        os.write(orders, b"\n")
        answer = os.read(answers, 8)
        if len(answer) != 8:
            raise RuntimeError(f"{' '.join(words)} has ended")
        return float(int.from_bytes(answer, "little")) / 1e9

    return turn


def serve(act: Callable[[], object]) -> None:
    """The other side: act for each byte, until there are no more, and answer with nanoseconds."""
    while os.read(0, 1):
        begin = time.perf_counter_ns()
        act()
        os.write(1, (time.perf_counter_ns() - begin).to_bytes(8, "little"))


def sequence(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Programs one after the other, each run to its end."""
    turns = [command(*words, environment=environment) for words in commands]

    def turn() -> None:
        for each in turns:
            each()

    return turn


if __name__ == "__main__":
    # Commands are separated by a word that none of them has.
    lists: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "--then":
            lists.append([])
        else:
            lists[-1].append(word)
    serve(sequence(lists))
