"""A process of its own that does one thing for each line on its standard input, and answers with a line.

So a contestant can live where the benchmark itself does not: in a program that has imported nothing else, or in a mount
namespace with other cgroups.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from bench.measure import command


def served(*words: str, wrapped: Sequence[str] = ()) -> Callable[[], None]:
    """Start ``python -m WORDS`` within the command ``wrapped``; a turn is one line there and back."""
    program = subprocess.Popen([*wrapped, sys.executable, "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    orders, answers = program.stdin.fileno(), program.stdout.fileno()

    def turn() -> None:
        os.write(orders, b"\n")
        if os.read(answers, 1) != b"\n":
            raise RuntimeError(f"{' '.join(words)} has ended")

    return turn


def serve(act: Callable[[], object]) -> None:
    """The other side: act for each line, until there are no more."""
    while os.read(0, 1):
        act()
        os.write(1, b"\n")


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
