"""Runs fuzz targets: mutated seeds against each invariant, for so many seconds, from a random or given seed.

A target is a function in tests/fuzz/targets.py whose docstring states the invariant; it takes bytes and raises
anything but what the invariant allows. What breaks it is written beside the working directory, so that it can
be run again and become a test.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from pathlib import Path

import tests.fuzz.disks  # noqa: F401  registers its targets
from tests.fuzz.targets import TARGETS, Target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="mutated bytes against invariants")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"targets: {', '.join(sorted(TARGETS))}; all if none")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run exactly")
    parser.add_argument("--replay", metavar="FILE", help="run one input against the one target named")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - TARGETS.keys())
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(sorted(TARGETS))}")
    if arguments.replay:
        if len(arguments.names) != 1:
            parser.error("--replay needs exactly one target")
        TARGETS[arguments.names[0]].run(Path(arguments.replay).read_bytes())
        return 0
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    broken = [name for name in arguments.names or sorted(TARGETS) if not fuzz(name, arguments.seconds, seed)]
    return 1 if broken else 0


def fuzz(name: str, seconds: float, seed: int) -> bool:
    """Whether the target's invariant held."""
    target = TARGETS[name]
    dice = random.Random(f"{seed} {name}")
    corpus = list(target.seeds)
    end = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < end:
        raw = mutate(dice, corpus)
        runs += 1
        try:
            if target.run(raw) and len(corpus) < 4096:
                corpus.append(raw)
        except Exception:
            report(name, target, raw, seed)
            return False
    print(f"{name}: {runs} inputs, seed {seed}: {target.invariant}")
    return True


def report(name: str, target: Target, raw: bytes, seed: int) -> None:
    path = Path(f"fuzz-{name}-{hashlib.sha256(raw).hexdigest()[:12]}")
    path.write_bytes(raw)
    print(f"{name}: broken with seed {seed}: {target.invariant}", file=sys.stderr)
    traceback.print_exc()
    print(f"\nhint: python -m tests.fuzz {name} --replay {path}", file=sys.stderr)


def mutate(dice: random.Random, corpus: list[bytes]) -> bytes:
    """A seed with a few bytes, runs or numbers changed, or spliced with another."""
    raw = bytearray(dice.choice(corpus))
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(7):
            case 0 if raw:
                raw[at % len(raw)] = dice.randrange(256)
            case 1 if raw:
                raw[at % len(raw)] ^= 1 << dice.randrange(8)
            case 2:
                del raw[at : at + dice.choice((1, 8, 100, 512))]
            case 3:
                raw[at:at] = dice.randbytes(dice.choice((1, 4, 64)))
            case 4:
                raw[at:at] = raw[at : at + dice.choice((1, 16, 512))]
            case 5:
                raw[at : at + 12] = dice.choice(
                    (b"\xff" * 12, bytes(12), b"77777777777\0", b"-1", b"9" * 20, b"../" * 4)
                )
            case 6:
                other = dice.choice(corpus)
                raw[at:] = other[dice.randrange(len(other) + 1) :]
    return bytes(raw)


if __name__ == "__main__":
    sys.exit(main())
