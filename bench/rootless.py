"""The row about an ordinary user's command line, against podman for the same user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from tests import peers
from tests.integration.rootless.person import HERE, Person

from bench.measure import Contestant, Row, alternate
from bench.served import served
from bench.world import World

# With the file system that it uses on distributions, and runc as in the other rows.
_PODMAN = ("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime")


def rootless(world: World, rounds: int) -> Row:
    """``run --rm --network none`` of ``true`` for a user with subordinate ids; both engines live where he does."""
    image, user = world.busybox(), _user(world)
    engines = {"mamushka": [os.path.join(world.programs, "mamushka")]}
    if not world.missing("podman", "runc", "newuidmap"):
        engines["podman"] = [peers.find("podman"), *_PODMAN, peers.find("runc")]
    contestants: dict[str, Contestant] = {}
    for name, engine in engines.items():
        insecure = ["--tls-verify=false"] if name == "podman" else []
        subprocess.run(user.command(*engine, "pull", *insecure, image), check=True, capture_output=True)
        words = (*engine, "run", "--rm", "--network", "none", image, "true")
        contestants[name] = served("bench.served", *words, wrapped=user.prefix(HERE))
    missing = world.missing("podman", "newuidmap")
    return Row("rootless", "an ordinary user's run --rm", "s", 0.4, "each", alternate(contestants, rounds), missing)


def _user(world: World) -> Person:
    home = tempfile.mkdtemp(prefix="mamushka-bench-person-", dir="/tmp")
    world.at_end(lambda: shutil.rmtree(home))
    return Person(home, ids=True)
