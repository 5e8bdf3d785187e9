"""The promises about speed and weight, each against its peers; those about the wall alone are in runtimes.py."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests import peers
from tests.registry import free_port

from bench import rootless, runtimes
from bench.measure import Contestant, Row, alternate, command, proportional
from bench.world import World

NAP = "86399"  # seconds; no other process on the machine sleeps exactly so long


def run(world: World, rounds: int) -> Row:
    """The command line without a network, against docker and podman."""
    samples, missing = _command_lines(world, rounds, lambda: ["--network", "none"])
    return Row("run", "run --rm --network none", "s", 0.4, "each", samples, missing)


def publish(world: World, rounds: int) -> Row:
    """The command line with the default bridge and one published port, against docker and podman."""
    samples, missing = _command_lines(world, rounds, lambda: ["-p", f"{free_port()}:80"])
    return Row("publish", "run --rm -p, default bridge", "s", 0.4, "each", samples, missing)


def _command_lines(
    world: World, rounds: int, options: Callable[[], Sequence[str]]
) -> tuple[dict[str, list[float]], list[str]]:
    image = world.busybox()
    engines = _engines(world)
    for engine in engines.values():
        subprocess.run(engine("pull", *_insecure(engine), image), check=True, capture_output=True)
    # Ports are chosen once: a published port that is free stays free in a network namespace of our own.
    contestants = {name: command(*engine("run", "--rm", *options(), image, "true")) for name, engine in engines.items()}
    return alternate(contestants, rounds), world.missing("dockerd", "podman")


def _engines(world: World) -> dict[str, Callable[..., list[str]]]:
    engines: dict[str, Callable[..., list[str]]] = {"mamushka": world.mamushka}
    if not world.missing("dockerd"):
        engines["docker"] = world.docker
    if not world.missing("podman"):
        engines["podman"] = world.podman
    return engines


def _insecure(engine: Callable[..., list[str]]) -> list[str]:
    return ["--tls-verify=false"] if getattr(engine, "__name__", "") == "podman" else []


def pull(world: World, rounds: int) -> Row:
    """A real image from a registry on loopback, unpacked, against podman and skopeo with umoci."""
    image = world.real_image()
    missing = world.missing("podman", "skopeo", "umoci")
    contestants: dict[str, Contestant] = {"mamushka": _fresh(world, "mamushka", image)}
    if "podman" not in missing:
        contestants["podman"] = _fresh(world, "podman", image)
    if not {"skopeo", "umoci"} & set(missing):
        contestants["skopeo+umoci"] = _skopeo_and_umoci(world, image)
    samples = alternate(contestants, max(3, rounds // 10))
    return Row("pull", "pull of a real image, unpacked", "s", 1.0, "fastest", samples, missing)


def _fresh(world: World, name: str, image: str) -> Contestant:
    """Pull into an empty store; removing the store is not part of the time."""
    engine = world.mamushka if name == "mamushka" else world.podman

    def turn() -> float:
        with _memory(os.path.dirname(world.path(f"{name}-pull", "x"))):
            begin = time.perf_counter()
            subprocess.run(engine("pull", *_insecure(engine), image, root="-pull"), check=True, capture_output=True)
            return time.perf_counter() - begin

    return turn


def _skopeo_and_umoci(world: World, image: str) -> Contestant:
    def turn() -> float:
        layout = world.path("skopeo", "layout")
        with _memory(os.path.dirname(layout)):
            begin = time.perf_counter()
            peers.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:bench")
            peers.run("umoci", "unpack", "--image", f"{layout}:bench", world.path("skopeo", "bundle"))
            return time.perf_counter() - begin

    return turn


@contextmanager
def _memory(place: str) -> Iterator[None]:
    """A fresh file system in memory at ``place`` for one turn.

    On a disk each turn would pay for the one before: ext4 passes over inodes that were deleted in the last
    minutes one by one, which takes longer than all else together when whole images come and go.
    """
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)


def memory(world: World, rounds: int) -> Row:
    """What an idle detached container keeps resident beside its own processes: the parent of its init."""
    image = world.busybox()
    samples: dict[str, list[float]] = {}
    for name, engine in _engines(world).items():
        subprocess.run(engine("pull", *_insecure(engine), image), check=True, capture_output=True)
        started = [_detach(engine, image) for _ in range(max(3, min(rounds, 10)))]
        time.sleep(3)  # whoever tidies up after a start has done so
        samples[name] = [float(proportional(parent)) for parent in _keepers()]
        subprocess.run(engine("rm", "-f", *started), check=True, capture_output=True)
    missing = world.missing("dockerd", "podman")
    return Row("memory", "resident per idle container (PSS)", "B", 1.0, "smallest", samples, missing)


def _detach(engine: Callable[..., list[str]], image: str) -> str:
    words = engine("run", "-d", "--network", "none", image, "sleep", NAP)
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def _keepers() -> list[int]:
    """The parents of the sleeping inits."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        if words[:2] == [b"sleep", NAP.encode()]:
            found.append(parent)
    return found


def crowd(world: World, rounds: int) -> Row:
    """A hundred containers started, waited for and removed by four callers at once, against podman."""
    image = world.busybox()
    missing = world.missing("podman")
    samples: dict[str, list[float]] = {}
    for name, engine in _engines(world).items():
        if name == "docker":
            continue  # the promise is about podman
        subprocess.run(engine("pull", *_insecure(engine), image), check=True, capture_output=True)
    turns = {name: _hundred(engine, image) for name, engine in _engines(world).items() if name != "docker"}
    for _ in range(max(1, rounds // 20)):
        for name, turn in turns.items():
            samples.setdefault(name, []).append(turn())
    return Row("crowd", "100 containers by 4 callers", "s", 0.3, "each", samples, missing)


def _hundred(engine: Callable[..., list[str]], image: str) -> Callable[[], float]:
    words = engine("run", "--rm", "--network", "none", image, "true")

    def turn() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda _: subprocess.run(words, check=True, capture_output=True), range(100)))
        taken = time.perf_counter() - begin
        left = subprocess.run(engine("ps", "-aq"), check=True, capture_output=True).stdout
        if left.strip():
            raise RuntimeError(f"{words[0]} left containers behind: {left.decode()}")
        return taken

    return turn


ROWS: dict[str, Callable[[World, int], Row]] = {
    "api": runtimes.api,
    "oci": runtimes.oci,
    "run": run,
    "publish": publish,
    "pull": pull,
    "memory": memory,
    "crowd": crowd,
    "exec": runtimes.exec_,
    "exec-api": runtimes.exec_api,
    "rootless": rootless.rootless,
}
