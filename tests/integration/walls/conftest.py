"""One workload behind each wall: ``wall`` is a container's or a machine's, and a test reads the same for both.

A machine's start takes seconds where the host itself is emulated, so what only looks at a workload looks at one that
its module shares: ``box``, or the report of ``report.sh``, which tells in sections all that a program can see of how it
was started. A machine's wall needs a KVM that runs a stock kernel; everywhere else its tests skip with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from mamushka.engine import runtimes
from tests import peers
from tests.integration.machine.linux_guest import usable
from tests.lab.kernel import Unavailable, default_cache, kernel

Done = subprocess.CompletedProcess[bytes]
PROGRAM = os.path.join(os.path.dirname(sys.executable), "mamushka")
CONTAINER, MACHINE = "container", "vm"


class Wall:
    """The command line behind one wall, with roots of its own."""

    def __init__(self, name: str, roots: tuple[str, str], image: str, options: tuple[str, ...]) -> None:
        self.name, self.image = name, image
        self.behind = ("--runtime", name, *options)
        self.program = (PROGRAM, "--data-root", roots[0], "--run-root", roots[1])

    @property
    def is_machine(self) -> bool:
        """Whether the workload has a kernel of its own."""
        return self.name == MACHINE

    def __call__(self, *words: str, input: bytes = b"", timeout: float = 120) -> Done:
        """Any command."""
        command = [*self.program, *words]
        return subprocess.run(command, input=input, capture_output=True, timeout=timeout, check=False)

    def words(self, *words: str, network: str = "none") -> tuple[str, ...]:
        """``run`` with options, two dashes, and the command; a command alone needs no dashes."""
        cut = words.index("--") if "--" in words else 0
        options, command = words[:cut], words[cut + 1 :] if "--" in words else words
        return ("run", *self.behind, "--network", network, *options, self.image, *command)

    def once(self, *words: str, network: str = "none", input: bytes = b"") -> Done:
        """Run it to its end and remove it."""
        return self(*self.words("--rm", *(words if "--" in words else ("--", *words)), network=network), input=input)

    def begin(self, *words: str, network: str = "none") -> str:
        """Run it in the background; its name."""
        name = f"walls-{uuid.uuid4().hex[:8]}"
        done = self(*self.words("-d", "--name", name, *(words if "--" in words else ("--", *words)), network=network))
        assert done.returncode == 0, done.stderr.decode()
        return name

    def exec(self, name: str, *words: str, input: bytes = b"") -> Done:
        """A further process; options, two dashes, and the command, or the command alone."""
        cut = words.index("--") if "--" in words else 0
        command = words[cut + 1 :] if "--" in words else words
        return self("exec", *words[:cut], name, *command, input=input)

    def told(self, name: str, words: bytes) -> bytes:
        """Its log, once these words are in it."""
        eventually(lambda: words in self("logs", name).stdout, f"{words!r} in the log of {name}")
        return self("logs", name).stdout

    def show(self, name: str, template: str) -> str:
        """A field of what inspect shows."""
        return self("inspect", "-f", template, name).stdout.decode().strip()


def eventually(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Poll with patience: an emulated host is slow."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.1)


def behind(name: str) -> tuple[str, ...]:
    """Further options for that wall; skips where this host has no such wall."""
    peers.need_root()
    if name == CONTAINER:
        return ()
    if not usable():
        pytest.skip("no KVM here that runs a stock kernel: make lab")
    try:
        place = os.path.dirname(os.path.dirname(kernel(default_cache()).image))
    except Unavailable as error:
        pytest.skip(str(error))
    lacking = runtimes.obstacle(MACHINE, kernel=place)
    if lacking:
        pytest.skip(lacking)
    return ("--kernel", place)


def make(name: str, base: str, image: str) -> Iterator[Wall]:
    """The wall, and in the end nothing behind it."""
    options = behind(name)
    made = Wall(name, (f"{base}/data", f"{base}/run"), image, options)
    if image != "host":
        pulled = made("pull", "-q", image)
        assert pulled.returncode == 0, pulled.stderr.decode()
    yield made
    left = made("ps", "-aq").stdout.decode().split()
    if left:
        made("rm", "-fv", *left)
    records = f"{base}/run/{'containers' if name == CONTAINER else 'machines'}"
    assert not os.path.isdir(records) or os.listdir(records) == [], os.listdir(records)


@pytest.fixture(scope="module", params=[CONTAINER, MACHINE])
def wall(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox_reference: str
) -> Iterator[Wall]:
    """Each wall in turn."""
    yield from make(request.param, str(tmp_path_factory.mktemp("w")), busybox_reference)


@pytest.fixture(scope="module")
def box(wall: Wall) -> str:
    """A workload that stays, for those who leave it as it was."""
    return wall.begin("--hostname", "home", "-e", "A=1", "--", "sleep", "100000")
