"""The rows about the wall itself: a start, an exec, through the Python API and from a cold command.

Peers are the programs that do the same: bubblewrap, runc, crun. Debian's crun refuses hosts that have both kinds of
cgroups; it runs in a mount namespace where the cgroup2 tree is unmounted, so that it sees a host of version 1.
``floor`` is what the kernel itself takes: a C program of clone3, mounts, pivot_root and execve, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from tests import peers

from bench.measure import Contestant, Row, alternate, command
from bench.served import sequence, served
from bench.world import World

_V2 = "/sys/fs/cgroup/unified"


def api(world: World, rounds: int) -> Row:
    """One call of the Python API, from spawn to exit, all namespaces, no network."""
    words = ("bench.in_process", "start", world.run_path("api"), world.path("api", "bundle"), world.rootfs())
    contestants: dict[str, Contestant] = {"mamushka": served(*words)}
    if not world.missing("bwrap"):
        contestants["bwrap"] = command(
            peers.find("bwrap"), "--unshare-all", "--bind", world.rootfs(), "/", "--proc", "/proc", "--dev", "/dev",
            "/bin/true",
        )  # fmt: skip
    if not world.missing("crun"):
        root, bundle = world.run_path("api-crun"), _bundle(world, "api-crun", "/bin/true")
        contestants["crun"] = _legacy(
            [[peers.find("crun"), "--root", root, "run", "--bundle", bundle, "bench-api-crun"]]
        )
    contestants |= _floor(world)
    samples = alternate(contestants, rounds)
    missing = world.missing("bwrap", "crun")
    return Row("api", "Python API, spawn to exit, no network", "s", 1.0, "each", samples, missing, ("floor",))


def oci(world: World, rounds: int) -> Row:
    """create, start and delete of ``true``, each from a cold process."""
    program = os.path.join(world.programs, "mamushka-oci")
    contestants: dict[str, Contestant] = {"mamushka": sequence(_life(world, program, "mamushka"))}
    if not world.missing("runc"):
        contestants["runc"] = sequence(_life(world, peers.find("runc"), "runc"))
    if not world.missing("crun"):
        contestants["crun"] = _legacy(_life(world, peers.find("crun"), "crun"))
    contestants |= _floor(world)
    samples = alternate(contestants, rounds)
    missing = world.missing("runc", "crun")
    return Row("oci", "mamushka-oci create, start, delete", "s", 1.0, "each", samples, missing, ("crun", "floor"))


def _life(world: World, program: str, name: str) -> list[list[str]]:
    bundle = _bundle(world, f"oci-{name}", "/bin/true")
    base = [program, "--root", world.run_path(f"oci-{name}")]
    id = f"bench-oci-{name}"
    return [[*base, "create", "--bundle", bundle, id], [*base, "start", id], [*base, "delete", "--force", id]]


def exec_(world: World, rounds: int) -> Row:
    """``exec true`` in a running container, each from a cold process."""
    program = os.path.join(world.programs, "mamushka-oci")
    contestants: dict[str, Contestant] = {"mamushka": command(*_further(world, program, "mamushka"))}
    if not world.missing("runc"):
        contestants["runc"] = command(*_further(world, peers.find("runc"), "runc"))
    samples = alternate(contestants, rounds)
    return Row("exec", "mamushka-oci exec true, cold", "s", 1.0, "each", samples, world.missing("runc"))


def exec_api(world: World, rounds: int) -> Row:
    """The same through the Python API."""
    words = ("bench.in_process", "exec", world.run_path("exec-api"), world.path("exec-api", "bundle"), world.rootfs())
    contestants: dict[str, Contestant] = {"mamushka": served(*words)}
    if not world.missing("runc"):
        contestants["runc"] = command(*_further(world, peers.find("runc"), "runc-api"))
    samples = alternate(contestants, rounds)
    return Row("exec-api", "Python API, exec true", "s", 0.5, "each", samples, world.missing("runc"))


def _further(world: World, program: str, name: str) -> list[str]:
    """The exec, in a container that sleeps until the world ends."""
    bundle = _bundle(world, f"exec-{name}", "/bin/sleep", "86399")
    base, id = [program, "--root", world.run_path(f"exec-{name}")], f"bench-exec-{name}"
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*base, "run", "--detach", "--bundle", bundle, id], check=True, **null)
    world.at_end(lambda: subprocess.run([*base, "delete", "--force", id], check=False, **null))
    return [*base, "exec", id, "/bin/true"]


def _bundle(world: World, name: str, *args: str) -> str:
    """A bundle of what runc's spec command writes, or ours where there is no runc; its directory."""
    path = world.path(name, "config.json")
    specify = peers.find("runc") or os.path.join(world.programs, "mamushka-oci")
    subprocess.run([specify, "spec"], cwd=os.path.dirname(path), check=True)
    with open(path) as file:
        config = json.load(file)
    config["process"].update(terminal=False, args=[*args])
    config["root"]["path"] = world.rootfs()
    config["linux"]["cgroupsPath"] = f"/mamushka-bench/{name}"
    with open(path, "w") as file:
        json.dump(config, file)
    return os.path.dirname(path)


def _legacy(commands: Sequence[Sequence[str]]) -> Callable[[], float]:
    words = ["bench.served"]
    for number, each in enumerate(commands):
        words += (["--then"] if number else []) + [*each]
    if not os.path.ismount(_V2):
        return served(*words)
    hide = f'umount {_V2} && exec "$@"'
    return served(*words, wrapped=["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"])


def _floor(world: World) -> dict[str, Contestant]:
    program = world.path("floor")
    if not os.path.exists(program):
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.c")
        try:
            subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True, stdout=sys.stderr)
        except FileNotFoundError:
            return {}
    return {"floor": command(program, world.rootfs(), "/bin/true")}
