"""``python -m tests.stress``: the full storm on this machine, alone, with its figures."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile

from tests import peers
from tests.stress.storm import Storm, percentile

PROGRAM = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")


def ground(base: str) -> None:
    """A root with busybox for everybody."""
    os.makedirs(f"{base}/rootfs/bin")
    for name in ("proc", "dev"):
        os.mkdir(f"{base}/rootfs/{name}")
    shutil.copy(peers.find("busybox"), f"{base}/rootfs/bin/busybox")
    for name in ("sleep", "true"):
        os.symlink("busybox", f"{base}/rootfs/bin/{name}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--containers", type=int, default=1000)
    parser.add_argument("--alive", type=int, default=200, help="at once")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--program", default=PROGRAM, help="another runtime, to compare")
    parser.add_argument("--seed", type=int, default=None, help="the same dice again")
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    base = tempfile.mkdtemp(prefix="mamushka-storm-")
    try:
        ground(base)
        size = {"containers": given.containers, "alive": given.alive, "callers": given.callers}
        storm = Storm(given.program, base, seed=seed, **size)
        seconds = storm.run()
        left = storm.left()
        storm.clean()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(f"seed {seed}: {given.containers} containers by {given.callers} callers in {seconds:.1f} s,")
    rate = given.containers / seconds
    print(f"  {rate:.1f} a second; {storm.most} alive at once; {storm.counts['killed']} commands killed half-way")
    for name, times in sorted(storm.times.items()):
        middle, late, last = (1000 * percentile(times, share) for share in (0.5, 0.99, 1.0))
        print(f"  {name:8} {len(times):5} times  p50 {middle:7.1f} ms  p99 {late:7.1f} ms  longest {last:7.1f} ms")
    for line in (*storm.errors, *left):
        print(f"  LEFT OR BROKEN: {line}")
    return 1 if storm.errors or left else 0


if __name__ == "__main__":
    sys.exit(main())
